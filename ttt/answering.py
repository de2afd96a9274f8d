"""One request from document to answer, as a sequence of events.

The generator does at most one reading, one adaptation step or one decoded token between two events,
so whoever drives it can take turns between requests and can stop one at any event by closing it.
"""

import time
from collections.abc import Generator, Iterator
from typing import TypeVar

import torch

from refine_server.ttt.fast_weights import BASE, FastWeights
from refine_server.ttt.generation import decode
from refine_server.ttt.models.base import CausalLM
from refine_server.ttt.models.state import State
from refine_server.ttt.prompting import Prompt, PromptTemplate
from refine_server.ttt.reading import Reading
from refine_server.ttt.refine import Adapted, adapt
from refine_server.ttt.types import (
    AdaptationEnded,
    AdaptationStep,
    AnswerCompleted,
    AnswerDelta,
    AnswerRequest,
    BaseAnswered,
    DocumentRead,
    Event,
    Limits,
    StepReport,
    Timings,
    Usage,
)

T = TypeVar("T")


def answer(
    model: CausalLM,
    request: AnswerRequest,
    *,
    limits: Limits | None = None,
    template: PromptTemplate | None = None,
) -> Iterator[Event]:
    """Answer a question about a document from a copy of the fast weights adapted on it.

    The base weights are never written; the copy ends with the generator.

    Raises:
        RequestError: the document or the query is empty or too long, before anything is computed.
    """
    clock = Clock()
    template = template or PromptTemplate(model.tokenizer)
    prompt = template.encode(request.document, request.query, limits or Limits())
    fast = new_fast_weights(model, request)
    document = read(model, prompt, request, fast)
    base_answer = None
    if request.compare_base or request.adapt.objective == "none":
        _ = document.base  # the whole reading belongs to prefill, not to what follows
    clock.lap("prefill")
    yield DocumentRead(len(prompt.document), len(prompt.query), clock.laps["prefill"])

    if request.compare_base:
        base_answer, _, _ = _exhaust(_decode(model, prompt, document.base.state, BASE, request))
        clock.lap("base")
        yield BaseAnswered(base_answer)

    adapted = yield from _steps(adapt(model, document, fast, request.adapt))
    clock.lap("adapt")
    del document  # its trunk and frozen layers are not needed to answer
    yield AdaptationEnded(adapted.report)

    decoding = _decode(model, prompt, adapted.state, adapted.fast_weights, request)
    text, finish, count = yield from _deltas(decoding, clock)
    clock.lap("decode")
    rollout_tokens = sum(step.rollout_tokens for step in adapted.report.steps)
    yield AnswerCompleted(
        answer=text,
        base_answer=base_answer,
        finish_reason=finish,
        adaptation=adapted.report,
        usage=Usage(len(prompt.document), len(prompt.query), count, rollout_tokens),
        timings=Timings(
            clock.laps["prefill"], clock.laps["adapt"], clock.laps["decode"], clock.first_token
        ),
    )


def new_fast_weights(model: CausalLM, request: AnswerRequest) -> FastWeights:
    """The copy that the request will own; nothing when it does not adapt."""
    config = request.adapt
    if config.objective == "none" or config.steps == 0:
        return BASE
    return model.new_fast_weights(config.targets, config.rank, config.seed)


def read(model: CausalLM, prompt: Prompt, request: AnswerRequest, fast: FastWeights) -> Reading:
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


def _decode(
    model: CausalLM, prompt: Prompt, state: State, fast: FastWeights, request: AnswerRequest
) -> Generator[str, None, tuple[str, str, int]]:
    return decode(model, prompt.query, state, fast, request.sampling)


def _steps(loop: Generator[StepReport, None, Adapted]) -> Generator[Event, None, Adapted]:
    while True:
        try:
            report = next(loop)
        except StopIteration as end:
            adapted: Adapted = end.value
            return adapted
        yield AdaptationStep(report)


def _deltas(
    decoding: Generator[str, None, tuple[str, str, int]], clock: Clock
) -> Generator[Event, None, tuple[str, str, int]]:
    while True:
        try:
            text = next(decoding)
        except StopIteration as end:
            clock.first_token = clock.first_token or time.monotonic() - clock.started
            result: tuple[str, str, int] = end.value
            return result
        clock.first_token = clock.first_token or time.monotonic() - clock.started
        yield AnswerDelta(text)


def _exhaust(generator: Generator[object, None, T]) -> T:
    while True:
        try:
            next(generator)
        except StopIteration as end:
            value: T = end.value
            return value
