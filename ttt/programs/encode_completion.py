"""Completions with their prompts as token ids, and with the document that the prompts follow."""

from collections.abc import Sequence
from dataclasses import dataclass

from refine_server.ttt.decoding.prompts.prompt import PromptTemplate
from refine_server.ttt.evidence.context import Context, ContextEncoder
from refine_server.ttt.interface.errors import TOO_LONG, RequestError
from refine_server.ttt.interface.evidence import EvidenceByAttention, EvidenceByUtility
from refine_server.ttt.interface.requests import CompletionRequest, Conversation, Limits, Prompt

MAX_LOG_PROBS = 1_000_000
"""Log-probabilities in one response; bounds the memory of the server and of the client."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EncodedCompletion:
    """A ``CompletionRequest`` and the token ids of its prompts."""

    request: CompletionRequest
    prompts: tuple[tuple[int, ...], ...]
    """What is continued; behind a document, with the passages that are repeated before it."""
    contexts: tuple[Context, ...] = ()
    """What is read of the document before each prompt, and its evidence; empty where the request
    has no document's text. An adapted document was read before."""

    @property
    def prompt_tokens(self) -> int:
        """Tokens of all prompts."""
        return sum(map(len, self.prompts))

    @property
    def document_tokens(self) -> int:
        """Tokens of what the request reads of its document."""
        if self.request.adapted is not None:
            return 0
        read = {id(context.prompt): context.prompt for context in self.contexts}
        return sum(len(prompt.document) for prompt in read.values())

    @property
    def tokens(self) -> int:
        """Tokens of the document and of all prompts."""
        return self.document_tokens + self.prompt_tokens


def encode_completion(
    work: CompletionRequest, template: PromptTemplate, limits: Limits, vocabulary: int
) -> EncodedCompletion:
    """Encode the prompts of a completion, and what is read of its document.

    Raises:
        RequestError: a text is empty or too long, a token id is unknown, or the evidence cannot be
            found as asked.
    """
    encode = _encode_alone if work.document is None else _encode_behind_document
    encoded = encode(work, template, limits)
    may_be_empty = work.adapted is not None or work.document is not None
    for prompt in encoded.prompts:
        _check_prompt(prompt, vocabulary, may_be_empty=may_be_empty)
    _check_log_probs(encoded)
    return encoded


def _encode_alone(
    work: CompletionRequest, template: PromptTemplate, limits: Limits
) -> EncodedCompletion:
    """Encode prompts that follow nothing, or a document whose text is not known."""
    tail = None if work.adapted is None else work.adapted.tail
    ids = {
        prompt: tuple(_encode_prompt(prompt, template, limits, tail))
        for prompt in _longest_first(work.prompts)
    }
    return EncodedCompletion(request=work, prompts=tuple(ids[p] for p in work.prompts))


def _encode_behind_document(
    work: CompletionRequest, template: PromptTemplate, limits: Limits
) -> EncodedCompletion:
    """Encode prompts behind a document, or behind its evidence."""
    assert work.document is not None
    by_model = isinstance(work.evidence, EvidenceByAttention | EvidenceByUtility)
    if by_model and work.adapted is not None:
        message = "evidence.by: the model chooses evidence only in a document as it read it first"
        raise RequestError(message, "evidence.by", "invalid_value")
    encoder = ContextEncoder(
        work.document, work.context, work.evidence, template, limits, is_aimed=False
    )

    def encode(prompt: Prompt) -> Context:
        def encode_query(tail: str, passages: str) -> list[int]:
            if work.adapted is not None:
                tail = work.adapted.tail
            return list(_encode_prompt(prompt, template, limits, tail, passages))

        return encoder.encode(_words(prompt, template), encode_query)

    by_prompt = {prompt: encode(prompt) for prompt in _longest_first(work.prompts)}
    contexts = tuple(by_prompt[prompt] for prompt in work.prompts)
    prompts = tuple(tuple(context.query) for context in contexts)
    return EncodedCompletion(request=work, prompts=prompts, contexts=contexts)


def _longest_first(prompts: Sequence[Prompt]) -> list[Prompt]:
    """Order distinct prompts so that an oversized one is refused before the others are encoded."""
    return sorted(set(prompts), key=_size, reverse=True)


def _words(prompt: Prompt, template: PromptTemplate) -> str:
    """Return what evidence is searched by: a prompt's text, or the user's last message."""
    match prompt:
        case str():
            return prompt
        case Conversation(messages):
            asked = (message.content for message in reversed(messages) if message.role == "user")
            return next(asked, "")
        case _:
            return str(template.tokenizer.decode(prompt))


def _encode_prompt(
    prompt: Prompt, template: PromptTemplate, limits: Limits, tail: str | None, passages: str = ""
) -> Sequence[int]:
    """Encode a prompt.

    Args:
        prompt: the prompt.
        template: the prompt's text and the tokenizer.
        limits: the longest texts that are accepted.
        tail: the end of the document that the prompt follows; None where it follows none.
        passages: text between the document and the prompt.
    """
    match prompt:
        case str():
            if tail is None:
                return template.encode_prompt(prompt, limits)
            return template.encode_continuation(prompt, limits, tail=tail, passages=passages)
        case Conversation(messages):
            if tail is None:
                return template.encode_messages(messages, limits)
            return template.encode_messages_after_document(
                messages, limits, tail=tail, passages=passages
            )
        case _:
            _check_length(prompt, limits.prompt_tokens if tail is None else limits.query_tokens)
            before = template.encode_continuation("", limits, tail=tail or "", passages=passages)
            return [*before, *prompt]


def _check_length(ids: tuple[int, ...], longest: int) -> None:
    if len(ids) > longest:
        message = f"prompt: {len(ids)} tokens; at most {longest} are accepted"
        raise RequestError(message, "prompt", TOO_LONG)


def _size(prompt: Prompt) -> int:
    """Return the length of a prompt in characters, messages or tokens."""
    return len(prompt.messages) if isinstance(prompt, Conversation) else len(prompt)


def _check_prompt(prompt: tuple[int, ...], vocabulary: int, *, may_be_empty: bool) -> None:
    if not prompt and not may_be_empty:
        raise RequestError("prompt is empty", "prompt", "empty")
    unknown = next((id for id in prompt if not 0 <= id < vocabulary), None)
    if unknown is not None:
        message = f"prompt: token {unknown} is not in the vocabulary, 0 to {vocabulary - 1}"
        raise RequestError(message, "prompt", "unknown_token")


def _check_log_probs(encoded: EncodedCompletion) -> None:
    work = encoded.request
    if work.logprobs is None:
        return
    tokens = len(work.prompts) * work.n * work.sampling.max_tokens
    tokens += encoded.prompt_tokens * work.n if work.echo else 0
    if tokens * (1 + work.logprobs) > MAX_LOG_PROBS:
        raise RequestError(
            f"logprobs: up to {tokens} tokens with {work.logprobs} alternatives each exceed the "
            f"{MAX_LOG_PROBS} log-probabilities of one response; send smaller batches",
            "logprobs",
            "too_many_logprobs",
        )
