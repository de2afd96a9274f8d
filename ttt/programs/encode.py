"""Requests with their texts as token ids: checked and encoded once, before they wait for the model.

Encoding needs the tokenizer and no model, so that it runs beside the model's thread.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from refine_server.ttt.decoding.prompts.prompt import DocumentPrompt, PromptTemplate
from refine_server.ttt.evidence.context import Context, encode_context
from refine_server.ttt.evidence.reading import DocumentReader
from refine_server.ttt.interface.errors import TOO_LONG, RequestError
from refine_server.ttt.interface.evidence import (
    EvidenceByAttention,
    EvidenceByUtility,
    EvidenceByWords,
)
from refine_server.ttt.interface.reports import Overflow
from refine_server.ttt.interface.requests import (
    AdaptRequest,
    AnswerRequest,
    AskRequest,
    CompletionRequest,
    Conversation,
    Limits,
    Prompt,
    Work,
)

if TYPE_CHECKING:  # it imports this module's callers
    from refine_server.ttt.document import AdaptedDocument

MAX_LOG_PROBS = 1_000_000
"""Log-probabilities in one response; bounds the memory of the server and of the client."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EncodedAnswer:
    """An ``AnswerRequest`` and its token ids."""

    request: AnswerRequest
    context: Context
    """What is read of the document, and the query."""

    @property
    def prompt(self) -> DocumentPrompt:
        """What is read first."""
        return self.context.prompt

    @property
    def query(self) -> list[int]:
        """What follows it."""
        return self.context.query

    @property
    def overflow(self) -> Overflow | None:
        """How the document was shortened, if it was."""
        return self.context.overflow

    @property
    def tokens(self) -> int:
        """Tokens of what is read of the document."""
        return len(self.prompt.document)

    @property
    def needs_model_for_evidence(self) -> bool:
        """Whether the model chooses the evidence."""
        return isinstance(self.request.evidence, EvidenceByAttention | EvidenceByUtility)

    @property
    def keeps_state(self) -> bool:
        """Whether the answer comes from the base model's state of the document.

        It does where the request adapts on evidence, or not at all.
        """
        adapt = self.request.adapt
        return adapt.objective == "none" or adapt.on.kind == "evidence"


@dataclass(frozen=True, kw_only=True, slots=True)
class EncodedAdapt:
    """An ``AdaptRequest`` and its token ids."""

    request: AdaptRequest
    prompt: DocumentPrompt
    query: list[int] | None
    overflow: Overflow | None = None
    """How the document was shortened, if it was."""

    @property
    def tokens(self) -> int:
        """Tokens of what is read of the document."""
        return len(self.prompt.document)


@dataclass(frozen=True, kw_only=True, slots=True)
class EncodedAsk:
    """An ``AskRequest`` and its token ids."""

    request: AskRequest
    query: list[int]

    @property
    def tokens(self) -> int:
        """Tokens of the query."""
        return len(self.query)


@dataclass(frozen=True, kw_only=True, slots=True)
class EncodedCompletion:
    """A ``CompletionRequest`` and the token ids of its prompts."""

    request: CompletionRequest
    prompts: tuple[tuple[int, ...], ...]

    @property
    def tokens(self) -> int:
        """Tokens of all prompts."""
        return sum(map(len, self.prompts))


EncodedWork = EncodedAnswer | EncodedAdapt | EncodedAsk | EncodedCompletion
"""Encoded work: ``request`` is what was asked, ``tokens`` what reading it costs."""


def encode(
    work: Work,
    template: PromptTemplate,
    limits: Limits,
    vocabulary: int,
    *,
    has_attention: bool = True,
) -> EncodedWork:
    """Encode the texts of a request.

    Args:
        work: the request.
        template: the prompt's text around document and query, and the tokenizer.
        limits: the longest texts that are accepted, in tokens.
        vocabulary: number of tokens that the model knows; ids are below it.
        has_attention: whether layers of the model have softmax attention to the whole document.

    Raises:
        RequestError: a text is empty, too long or missing, or has a token that the model does not
            know; ``param`` names the field.
    """
    encoded = _encode_texts(work, template, limits, has_attention=has_attention)
    for param, ids in _texts(encoded, template, limits):
        require_known(ids, vocabulary, param, template)
    return encoded


def require_known(
    ids: Sequence[int], vocabulary: int, param: str, template: PromptTemplate
) -> None:
    """Raise RequestError if there is a token that the model has no embedding for.

    A tokenizer may have more tokens than the weights, such as those that were added to it later.
    """
    if not ids or 0 <= min(ids) <= max(ids) < vocabulary:
        return
    unknown = next(id for id in ids if not 0 <= id < vocabulary)
    tokenizer = template.tokenizer
    is_token = 0 <= unknown < len(tokenizer)
    spelled = f", {tokenizer.convert_ids_to_tokens(unknown)!r}," if is_token else ""
    message = (
        f"{param}: token {unknown}{spelled} is not in the model's vocabulary, 0 to {vocabulary - 1}"
    )
    raise RequestError(message, param, "unknown_token")


def _texts(
    encoded: EncodedWork, template: PromptTemplate, limits: Limits
) -> Iterator[tuple[str, Sequence[int]]]:
    """Yield the tokens that the model is to read, with the field that they come from."""
    match encoded:
        case EncodedAnswer() | EncodedAdapt():
            prompt = encoded.prompt
            yield "document", prompt.header + prompt.document
            if prompt.tail:
                yield "document", template.encode_continuation("", limits, tail=prompt.tail)
            yield "query", encoded.query or []
        case EncodedAsk():
            yield "query", encoded.query
        case EncodedCompletion():
            for text, ids in zip(encoded.request.prompts, encoded.prompts, strict=True):
                yield "messages" if isinstance(text, Conversation) else "prompt", ids


def _encode_texts(
    work: Work, template: PromptTemplate, limits: Limits, *, has_attention: bool
) -> EncodedWork:
    match work:
        case AnswerRequest():
            _refuse_model_evidence(work)
            if not has_attention:
                _refuse_attention(work)
            _require_queries(work, template, limits)
            return EncodedAnswer(request=work, context=encode_context(work, template, limits))
        case AdaptRequest():
            kind = work.adapt.on.kind
            if work.query is None and kind in ("query_spans", "prompt"):
                message = f"adapt.on.kind: {kind} requires a query"
                raise RequestError(message, "adapt.on.kind", "invalid_value")
            if work.adapt.on.kind == "evidence":
                message = "adapt.on.kind: evidence is chosen for one query, in /v1/answers"
                raise RequestError(message, "adapt.on.kind", "invalid_value")
            return _encode_adapt(work, template, limits)
        case AskRequest():
            query = template.encode_query(work.query, limits, tail=work.adapted.tail)
            _require_place(work.adapted, len(query), limits, "query", "query_too_long")
            return EncodedAsk(request=work, query=query)
        case CompletionRequest():
            return _encode_completion(work, template, limits)


def _encode_adapt(work: AdaptRequest, template: PromptTemplate, limits: Limits) -> EncodedAdapt:
    """Encode a document to be kept, with room for the queries to come and their answers."""
    room = limits.document_tokens
    if limits.context_length is not None:
        known = 0 if work.query is None else len(template.encode_query(work.query, limits))
        kept_free = max(known, min(limits.query_tokens, limits.context_length // 4))
        room = min(room, max(limits.context_length - template.header_tokens - kept_free, 0))
    reader = DocumentReader(template=template, limits=limits, on_overflow=work.on_overflow)
    prompt, overflow = reader.read_whole(work.document, room), None
    if prompt is None:
        _, offsets = reader.locate(work.document, room)
        _, prompt, overflow = reader.read(work.document, offsets, room, work.query)
    query = None
    if work.query is not None:
        query = template.encode_query(work.query, limits, tail=prompt.tail)
    return EncodedAdapt(request=work, prompt=prompt, query=query, overflow=overflow)


def _require_place(
    adapted: "AdaptedDocument", tokens: int, limits: Limits, param: str, code: str
) -> None:
    """Raise RequestError if the model has no positions for a text behind an adapted document."""
    if limits.context_length is None:
        return
    left = limits.context_length - int(adapted.state.position[0]) - 1
    if tokens > left:
        message = (
            f"{param}: {tokens} tokens; at most {left} follow this document in the model's "
            f"{limits.context_length}, with one for the answer"
        )
        raise RequestError(message, param, code)


def _require_queries(work: AnswerRequest, template: PromptTemplate, limits: Limits) -> None:
    """Raise RequestError if the words to search a document by are oversized, before the search."""
    template.require_query(work.query, limits, "query")
    if isinstance(work.evidence, EvidenceByWords) and work.evidence.query is not None:
        template.require_query(work.evidence.query, limits, "evidence.query")


def _refuse_model_evidence(work: AnswerRequest) -> None:
    """Raise RequestError if the model is to choose evidence for an adaptation to the document."""
    by_model = isinstance(work.evidence, EvidenceByAttention | EvidenceByUtility)
    if by_model and work.adapt.objective != "none" and work.adapt.on.kind != "evidence":
        message = "evidence.by: the model chooses evidence only where adapt.on.kind is evidence"
        raise RequestError(message, "evidence.by", "invalid_value")


def _refuse_attention(work: AnswerRequest) -> None:
    """Raise RequestError if a request needs attention that the model does not have."""
    adapt, param = work.adapt, None
    if isinstance(work.evidence, EvidenceByAttention):
        param = "evidence.by"
    elif adapt.objective == "attention":
        param = "adapt.objective"
    elif adapt.objective != "none" and adapt.loss.attention:
        param = "adapt.loss.attention"
    if param is not None:
        message = f"{param}: this model has no layers with attention to the whole document"
        raise RequestError(message, param, "invalid_value")


def _encode_completion(
    work: CompletionRequest, template: PromptTemplate, limits: Limits
) -> EncodedCompletion:
    tail = None if work.adapted is None else work.adapted.tail
    # Longest first: an oversized text is refused before the others are encoded.
    ids = {
        prompt: tuple(_encode_prompt(prompt, template, limits, tail))
        for prompt in sorted(set(work.prompts), key=_size, reverse=True)
    }
    prompts = tuple(ids[prompt] for prompt in work.prompts)
    if tail is None and not all(prompts):
        raise RequestError("prompt is empty", "prompt", "empty")
    if work.adapted is not None:
        for prompt in prompts:
            _require_place(work.adapted, len(prompt), limits, "prompt", TOO_LONG)
    encoded = EncodedCompletion(request=work, prompts=prompts)
    _check_log_probs(work, encoded.tokens)
    return encoded


def _encode_prompt(
    prompt: Prompt, template: PromptTemplate, limits: Limits, tail: str | None
) -> Sequence[int]:
    """Encode a prompt, behind the document that ends with a tail if there is a document."""
    match prompt:
        case str():
            if tail is None:
                return template.encode_prompt(prompt, limits)
            return template.encode_continuation(prompt, limits, tail=tail)
        case Conversation(messages):
            if tail is None:
                return template.encode_messages(messages, limits)
            return template.encode_messages_after_document(messages, limits, tail=tail)
        case _:
            _check_length(prompt, limits.prompt_tokens if tail is None else limits.query_tokens)
            return [*template.encode_continuation("", limits, tail=tail or ""), *prompt]


def _check_length(ids: tuple[int, ...], longest: int) -> None:
    if len(ids) > longest:
        message = f"prompt: {len(ids)} tokens; at most {longest} are accepted"
        raise RequestError(message, "prompt", TOO_LONG)


def _size(prompt: Prompt) -> int:
    """Return the length of a prompt in characters, messages or tokens."""
    return len(prompt.messages) if isinstance(prompt, Conversation) else len(prompt)


def _check_log_probs(work: CompletionRequest, prompt_tokens: int) -> None:
    if work.logprobs is None:
        return
    tokens = len(work.prompts) * work.n * work.sampling.max_tokens
    tokens += prompt_tokens * work.n if work.echo else 0
    if tokens * (1 + work.logprobs) > MAX_LOG_PROBS:
        raise RequestError(
            f"logprobs: up to {tokens} tokens with {work.logprobs} alternatives each exceed the "
            f"{MAX_LOG_PROBS} log-probabilities of one response; send smaller batches",
            "logprobs",
            "too_many_logprobs",
        )
