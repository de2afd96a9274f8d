"""Requests with their texts as token ids: checked and encoded once, before they wait for the model.

Encoding needs the tokenizer and no model, so that it runs beside the model's thread.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from refine_server.ttt.decoding.grammar import Grammar, GrammarCompiler
from refine_server.ttt.decoding.prompts.prompt import DocumentPrompt, PromptTemplate
from refine_server.ttt.evidence.context import Context, ContextEncoder, Query, require_place
from refine_server.ttt.interface.config import AdaptConfig
from refine_server.ttt.interface.errors import RequestError
from refine_server.ttt.interface.evidence import (
    Evidence,
    EvidenceByAttention,
    EvidenceByUtility,
    EvidenceByWords,
)
from refine_server.ttt.interface.reports import Overflow
from refine_server.ttt.interface.requests import (
    DEFAULT_ADAPTATION,
    AdaptRequest,
    AnswerRequest,
    AskRequest,
    CompletionRequest,
    Conversation,
    Limits,
    Work,
)
from refine_server.ttt.programs.encode_adaptation import (
    EncodedAdapt,
    EncodedQueryAdapt,
    encode_adaptation,
)
from refine_server.ttt.programs.encode_completion import EncodedCompletion, encode_completion
from refine_server.ttt.tracing.characters import Characters, locate_characters


@dataclass(frozen=True, kw_only=True, slots=True)
class EncodedAnswer:
    """An ``AnswerRequest`` and its token ids."""

    request: AnswerRequest
    context: Context
    """What is read of the document, and the query."""
    characters: Characters | None = None
    """Of the document's tokens; None where no trace is asked for."""
    grammar: Grammar | None = None
    """The form that the answer is held to."""

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
    def keeps_state(self) -> bool:
        """Whether the answer comes from the base model's state of the document.

        It does where the request adapts on evidence, or not at all.
        """
        adapt = self.request.adapt
        return adapt.objective == "none" or adapt.on.kind == "evidence"


@dataclass(frozen=True, kw_only=True, slots=True)
class EncodedAsk:
    """An ``AskRequest`` and its token ids."""

    request: AskRequest
    query: list[int]
    grammar: Grammar | None = None
    """The form that the answer is held to."""

    @property
    def tokens(self) -> int:
        """Tokens of the query."""
        return len(self.query)


EncodedWork = EncodedAnswer | EncodedAdapt | EncodedQueryAdapt | EncodedAsk | EncodedCompletion
"""Encoded work: ``request`` is what was asked, ``tokens`` what reading it costs."""


def encode(
    work: Work,
    template: PromptTemplate,
    limits: Limits,
    vocabulary: int,
    *,
    has_attention: bool = True,
    grammars: GrammarCompiler | None = None,
) -> EncodedWork:
    """Encode the texts of a request.

    Args:
        work: the request.
        template: the prompt's text around document and query, and the tokenizer.
        limits: the longest texts that are accepted, in tokens.
        vocabulary: number of tokens that the model knows; ids are below it.
        has_attention: whether layers of the model have softmax attention to the whole document.
        grammars: compiles the forms that answers are held to; needed where a request has one.

    Raises:
        RequestError: a text is empty, too long or missing, or has a token that the model does not
            know, or nothing has the form that is asked for; ``param`` names the field.
    """
    encoded = _encode_texts(work, template, limits, has_attention=has_attention)
    for param, ids in _texts(encoded, template, limits):
        require_known(ids, vocabulary, param, template)
    form = None if isinstance(work, AdaptRequest) else work.sampling.form
    if form is None or isinstance(encoded, EncodedAdapt | EncodedQueryAdapt):
        return encoded
    if grammars is None:
        raise RequestError(f"{form.param}: not supported here", form.param, "invalid_value")
    return replace(encoded, grammar=grammars.compile(form))


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
            yield from _document_texts(encoded.prompt, template, limits)
            yield "query", encoded.query or []
        case EncodedQueryAdapt():
            yield from _document_texts(encoded.prompt, template, limits)
            for number, context in enumerate(encoded.contexts):
                yield f"queries.{number}", context.query
        case EncodedAsk():
            yield "query", encoded.query
        case EncodedCompletion():
            for context in encoded.contexts:
                yield from _document_texts(context.prompt, template, limits)
            for text, ids in zip(encoded.request.prompts, encoded.prompts, strict=True):
                yield "messages" if isinstance(text, Conversation) else "prompt", ids


def _document_texts(
    prompt: DocumentPrompt, template: PromptTemplate, limits: Limits
) -> Iterator[tuple[str, Sequence[int]]]:
    yield "document", prompt.header + prompt.document
    if prompt.tail:
        yield "document", template.encode_continuation("", limits, tail=prompt.tail)


def _encode_texts(
    work: Work, template: PromptTemplate, limits: Limits, *, has_attention: bool
) -> EncodedWork:
    match work:
        case AnswerRequest():
            _refuse_model_evidence(work)
            if not has_attention:
                _refuse_attention(work.evidence, work.adapt)
            template.require_query(work.query, limits, "query")
            _require_words(work.evidence, template, limits)
            context = _encode_context(work, template, limits)
            characters = None
            if work.adapt.trace:
                characters = locate_characters(
                    work.document, context.reading, context.prompt, template, limits
                )
            return EncodedAnswer(request=work, context=context, characters=characters)
        case AdaptRequest():
            if not has_attention:
                _refuse_attention(work.evidence, work.adapt)
            for number, text in enumerate(work.queries):
                template.require_query(text, limits, f"queries.{number}")
            _require_words(work.evidence, template, limits)
            return encode_adaptation(work, template, limits)
        case AskRequest():
            if work.compare_base and work.adapted.input_ids is None:
                message = "compare_base: this adaptation was kept by an earlier version, without "
                message += "its document's tokens. Adapt again."
                raise RequestError(message, "compare_base", "invalid_value")
            query = template.encode_query(work.query, limits, tail=work.adapted.tail)
            read = work.adapted.read_tokens
            require_place(read, len(query), limits, "query", "query_too_long")
            return EncodedAsk(request=work, query=query)
        case CompletionRequest():
            if not has_attention:
                _refuse_attention(work.evidence, DEFAULT_ADAPTATION)
            _require_words(work.evidence, template, limits)
            return encode_completion(work, template, limits)


def _encode_context(work: AnswerRequest, template: PromptTemplate, limits: Limits) -> Context:
    encoder = ContextEncoder(
        document=work.document,
        pages=work.pages,
        strategy=work.context,
        evidence=work.evidence,
        on_overflow=work.on_overflow if work.kept is None else "truncate_middle",
        template=template,
        limits=limits,
        is_aimed=_needs_evidence(work),
        room=None if work.kept is None or work.context == "passages" else work.kept.room,
    )

    def encode_query(tail: str, passages: str) -> list[int]:
        return template.encode_query(work.query, limits, tail=tail, passages=passages)

    asked = Query(words=work.query, encode=encode_query, max_tokens=work.sampling.max_tokens)
    return encoder.encode(asked)


def _needs_evidence(work: AnswerRequest) -> bool:
    """Return whether an adaptation is aimed at the evidence, or judged by it."""
    if work.kept is not None:
        return work.kept.guard == "answer"
    return work.adapt.on.kind == "evidence"


def _require_words(evidence: Evidence | None, template: PromptTemplate, limits: Limits) -> None:
    """Raise RequestError if the words to search a document by are oversized, before the search."""
    if isinstance(evidence, EvidenceByWords) and evidence.words is not None:
        template.require_query(evidence.words, limits, "evidence.words")


def _refuse_model_evidence(work: AnswerRequest) -> None:
    """Raise RequestError if the model is to choose evidence for an adaptation to the document."""
    by_model = isinstance(work.evidence, EvidenceByAttention | EvidenceByUtility)
    if by_model and work.adapt.objective != "none" and work.adapt.on.kind != "evidence":
        message = "evidence.by: the model chooses evidence only where adapt.on.kind is evidence"
        raise RequestError(message, "evidence.by", "invalid_value")


def _refuse_attention(evidence: Evidence | None, adapt: AdaptConfig) -> None:
    """Raise RequestError if a request needs attention that the model does not have."""
    param = None
    if isinstance(evidence, EvidenceByAttention):
        param = "evidence.by"
    elif adapt.objective == "attention":
        param = "adapt.objective"
    elif adapt.objective != "none" and adapt.loss.attention:
        param = "adapt.loss.attention"
    if param is not None:
        message = f"{param}: this model has no layers with attention to the whole document"
        raise RequestError(message, param, "invalid_value")
