"""Completions with their prompts as token ids, and with the document that the prompts follow."""

from collections.abc import Sequence
from dataclasses import dataclass

from refine_server.ttt.decoding.grammar import Grammar
from refine_server.ttt.decoding.prompts.prompt import PromptTemplate
from refine_server.ttt.evidence.context import Context, ContextEncoder, Query, require_place
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
    grammar: Grammar | None = None
    """The form that every choice is held to."""

    @property
    def prompt_tokens(self) -> int:
        """Tokens of all prompts."""
        return sum(map(len, self.prompts))

    @property
    def document_tokens(self) -> int:
        """Tokens of what the request reads of its document, which it reads for all prompts."""
        prompts = [context.prompt for context in self.contexts]
        before = [None, *prompts]
        read = (p for p, last in zip(prompts, before, strict=False) if p != last)
        return sum(len(prompt.document) for prompt in read)

    @property
    def tokens(self) -> int:
        """Tokens of the document and of all prompts."""
        return self.document_tokens + self.prompt_tokens


def encode_completion(
    work: CompletionRequest, template: PromptTemplate, limits: Limits
) -> EncodedCompletion:
    """Encode the prompts of a completion, and what is read of its document.

    Raises:
        RequestError: a text is empty or too long, or the evidence cannot be found as asked.
    """
    encode = _encode_alone if work.document is None else _encode_behind_document
    encoded = encode(work, template, limits)
    if work.adapted is None and work.document is None and not all(encoded.prompts):
        raise RequestError("prompt is empty", "prompt", "empty")
    if work.adapted is not None:
        read = work.adapted.read_tokens
        for prompt in encoded.prompts:
            require_place(read, len(prompt), limits, "prompt", TOO_LONG)
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
    adapted, kept = work.adapted, work.kept
    by_model = isinstance(work.evidence, EvidenceByAttention | EvidenceByUtility)
    if by_model and adapted is not None:
        message = "evidence.by: the model chooses evidence only in a document as it read it first"
        raise RequestError(message, "evidence.by", "invalid_value")
    encoder = ContextEncoder(
        document=work.document,
        pages=work.pages,
        strategy=work.context,
        evidence=work.evidence,
        on_overflow=work.on_overflow if kept is None else "truncate_middle",
        template=template,
        limits=limits,
        room=None if kept is None or work.context == "passages" else kept.room,
    )

    def encode(prompt: Prompt) -> Context:
        def encode_query(tail: str, passages: str) -> list[int]:
            return list(_encode_prompt(prompt, template, limits, tail, passages))

        # An oversized prompt is refused before the document is searched by it.
        _encode_prompt(prompt, template, limits, "")
        query = Query(
            words=_words(prompt, template),
            encode=encode_query,
            max_tokens=work.sampling.max_tokens,
            param="messages" if isinstance(prompt, Conversation) else "prompt",
            code=TOO_LONG,
        )
        if adapted is None:
            return encoder.encode(query)
        return encoder.encode_behind(query, adapted.tail, adapted.read_tokens)

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
