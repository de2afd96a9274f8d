"""From document to adapted document, and from adapted document to answers, as events.

Every kind of work is a coroutine of events and operations (``operations``): one reading, one
adaptation step, one decoded token. Whoever drives it can take turns between requests at any
operation, run those of several in one batch, and stop one by closing it. ``perform``, ``answer``,
``ask`` and ``adapt_document`` are such drivers for one request: they give the events alone.
"""

import time
from collections.abc import Callable, Iterator
from typing import Any

import torch

from refine_server.ttt.batching import Alone, Coroutine, convert, one_by_one
from refine_server.ttt.decoding.decode import Decoded, Decoding, decode
from refine_server.ttt.decoding.prompt import DocumentPrompt, PromptTemplate
from refine_server.ttt.document import AdaptedDocument
from refine_server.ttt.fast_weights import BASE, FastWeights
from refine_server.ttt.interface.events import (
    AdaptationEnded,
    AdaptationStep,
    AnswerCompleted,
    AnswerDelta,
    BaseAnswered,
    DocumentAdapted,
    DocumentRead,
    Event,
)
from refine_server.ttt.interface.reports import Timings, Usage
from refine_server.ttt.interface.requests import (
    AdaptRequest,
    AnswerRequest,
    AskRequest,
    CompletionRequest,
    Limits,
    Work,
)
from refine_server.ttt.models.base import CausalLM
from refine_server.ttt.models.state import compact
from refine_server.ttt.programs.complete import completing
from refine_server.ttt.refine.loop import adapting
from refine_server.ttt.refine.rows import Asked, Reading

ShouldStop = Callable[[], str | None]
"""Asked after every step; a reason to make no more."""


def working(
    model: CausalLM,
    work: Work,
    *,
    limits: Limits | None = None,
    template: PromptTemplate | None = None,
    should_stop: ShouldStop = lambda: None,
) -> Coroutine[Event, None]:
    """Any piece of work as a coroutine; its last event is a ``Last``."""
    match work:
        case AnswerRequest():
            return answering(model, work, limits=limits, template=template, should_stop=should_stop)
        case AdaptRequest():
            return adapting_to(
                model, work, limits=limits, template=template, should_stop=should_stop
            )
        case AskRequest():
            return asking(model, work, limits=limits, template=template)
        case CompletionRequest():
            return completing(model, work, limits=limits)


def perform(model: CausalLM, work: Work, **options: Any) -> Iterator[Event]:
    """Do any piece of work here and now; options as of ``working``."""
    return one_by_one(working(model, work, **options))


def adapt_document(model: CausalLM, request: AdaptRequest, **options: Any) -> Iterator[Event]:
    """Do ``adapting_to`` here and now."""
    return one_by_one(adapting_to(model, request, **options))


def ask(model: CausalLM, request: AskRequest, **options: Any) -> Iterator[Event]:
    """Do ``asking`` here and now."""
    return one_by_one(asking(model, request, **options))


def answer(model: CausalLM, request: AnswerRequest, **options: Any) -> Iterator[Event]:
    """Do ``answering`` here and now."""
    return one_by_one(answering(model, request, **options))


def adapting_to(
    model: CausalLM,
    request: AdaptRequest,
    *,
    limits: Limits | None = None,
    template: PromptTemplate | None = None,
    should_stop: ShouldStop = lambda: None,
) -> Coroutine[Event, None]:
    """Adapt a fresh copy of the fast weights to a document. The base weights are never written.

    Raises:
        RequestError: the document, or a query, is empty or too long, before anything is computed.
    """
    template = template or PromptTemplate(model.tokenizer)
    limits = limits or Limits()
    prompt = template.encode_document(request.document, limits)
    asked = None
    if request.query is not None:
        query = template.encode_query(request.query, limits)
        asked = Asked(request.query, prompt.header, query)
    began = time.monotonic()
    whole = request.adapt.objective == "none"
    fast, document = yield Alone(lambda: begin(model, prompt, request, whole=whole), model.threads)
    yield DocumentRead(len(prompt.document), time.monotonic() - began)
    tokens = len(prompt.document)
    adapted = yield from _adapted(model, document, tokens, fast, request, should_stop, asked)
    yield DocumentAdapted(adapted)


def asking(
    model: CausalLM,
    request: AskRequest,
    *,
    limits: Limits | None = None,
    template: PromptTemplate | None = None,
) -> Coroutine[Event, None]:
    """Answer a question from an adapted document, which stays as it is for the next one.

    Raises:
        RequestError: the query is empty or too long, before anything is computed.
        IsolationError: the document is not the asking owner's.
    """
    adapted = request.adapted
    adapted.require_owner(request.owner)
    template = template or PromptTemplate(model.tokenizer)
    query = template.encode_query(request.query, limits or Limits())
    clock = Clock()
    decoding = decode(model, query, adapted.state, adapted.fast_weights, request.sampling)
    text, finish, count = yield from _deltas(decoding, clock)
    clock.lap("decode")
    yield AnswerCompleted(
        answer=text,
        base_answer=None,
        finish_reason=finish,
        adaptation=adapted.report,
        usage=Usage(adapted.document_tokens, len(query), count, 0),
        timings=Timings(0.0, 0.0, clock.laps["decode"], clock.first_token),
    )


def answering(
    model: CausalLM,
    request: AnswerRequest,
    *,
    limits: Limits | None = None,
    template: PromptTemplate | None = None,
    should_stop: ShouldStop = lambda: None,
) -> Coroutine[Event, None]:
    """Answer a question about a document from a copy of the fast weights adapted on it.

    The base weights are never written; the copy ends with the coroutine.

    Raises:
        RequestError: the document or the query is empty or too long, before anything is computed.
    """
    clock = Clock()
    template, limits = template or PromptTemplate(model.tokenizer), limits or Limits()
    prompt = template.encode_document(request.document, limits)
    query = template.encode_query(request.query, limits)
    whole = request.compare_base or request.adapt.objective == "none"
    fast, document = yield Alone(lambda: begin(model, prompt, request, whole=whole), model.threads)
    clock.lap("prefill")
    yield DocumentRead(len(prompt.document), clock.laps["prefill"])

    base_answer = None
    if request.compare_base:
        decoding = decode(
            model, query, document.base_end[1], BASE, request.sampling, document=prompt.document
        )
        base_answer, _, _ = yield from convert(decoding, lambda _: None)
        clock.lap("base")
        yield BaseAnswered(base_answer)

    tokens, asked = len(prompt.document), Asked(request.query, prompt.header, query)
    adapted = yield from _adapted(model, document, tokens, fast, request, should_stop, asked)
    clock.lap("adapt")
    del document  # its trunk and frozen layers are not needed to answer

    adapted.require_owner(request.owner)
    fast = adapted.fast_weights
    decoding = decode(model, query, adapted.state, fast, request.sampling, document=prompt.document)
    text, finish, count = yield from _deltas(decoding, clock)
    clock.lap("decode")
    rollout_tokens = sum(step.rollout_tokens for step in adapted.report.steps)
    yield AnswerCompleted(
        answer=text,
        base_answer=base_answer,
        finish_reason=finish,
        adaptation=adapted.report,
        usage=Usage(tokens, len(query), count, rollout_tokens),
        timings=Timings(
            clock.laps["prefill"], clock.laps["adapt"], clock.laps["decode"], clock.first_token
        ),
    )


def begin(
    model: CausalLM, prompt: DocumentPrompt, request: AdaptRequest | AnswerRequest, *, whole: bool
) -> tuple[FastWeights, Reading]:
    """The copy that the request will own, and the document as far as no copy changes it.

    ``whole``: the base model's reading of all layers belongs to it.
    """
    fast = new_fast_weights(model, request)
    document = read(model, prompt, request, fast)
    if whole:
        _ = document.base_end
    return fast, document


def new_fast_weights(model: CausalLM, request: AdaptRequest | AnswerRequest) -> FastWeights:
    """The copy that the request will own; nothing when it does not adapt."""
    config = request.adapt
    if config.objective == "none" or config.steps == 0:
        return BASE
    fast = model.new_fast_weights(config.targets, config.rank, config.seed)
    return FastWeights(fast.tensors, request.owner)


def read(
    model: CausalLM,
    prompt: DocumentPrompt,
    request: AdaptRequest | AnswerRequest,
    fast: FastWeights,
) -> Reading:
    """The prompt up to the end of the document, its frozen layers computed."""
    ids = torch.tensor([prompt.header + prompt.document], device=model.device)
    first = len(prompt.header)
    return Reading(model, ids, fast, first=first, positions=request.adapt.chunks)


class Clock:
    """Seconds of each phase, and until the first token."""

    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self.started = self._last = time.monotonic()
        self.first_token = 0.0

    def lap(self, phase: str) -> None:
        """End a phase that began when the last one ended."""
        now = time.monotonic()
        self.laps[phase] = now - self._last
        self._last = now

    def see_token(self) -> None:
        """Note the time of the first token, if none was seen yet."""
        self.first_token = self.first_token or time.monotonic() - self.started


def _adapted(
    model: CausalLM,
    document: Reading,
    document_tokens: int,
    fast: FastWeights,
    request: AdaptRequest | AnswerRequest,
    should_stop: ShouldStop,
    asked: Asked | None,
) -> Coroutine[Event, AdaptedDocument]:
    began = time.monotonic()
    steps = adapting(model, document, fast, request.adapt, should_stop, asked)
    result = yield from convert(steps, AdaptationStep)
    yield AdaptationEnded(result.report, time.monotonic() - began)
    return AdaptedDocument(
        request.owner,
        result.fast_weights,
        compact(result.state),  # it may be kept for long
        compact(result.hidden),
        result.report,
        document_tokens,
    )


def _deltas(decoding: Decoding, clock: Clock) -> Coroutine[Event, tuple[str, str, int]]:
    def delta(token: Decoded) -> AnswerDelta:
        clock.see_token()
        return AnswerDelta(token.text)

    result = yield from convert(decoding, delta)
    clock.see_token()  # there may have been none
    return result
