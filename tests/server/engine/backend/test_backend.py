"""One contract for every backend, and what a real one does with its options."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from refine_server.server.engine.backend import model_backend
from refine_server.server.engine.backend.opening import open_backend
from refine_server.server.engine.backend.protocol import Backend
from refine_server.server.engine.backend.self_check import SELF_CHECK
from refine_server.server.settings import Settings
from refine_server.ttt.batching import resume, run, stream
from refine_server.ttt.document import AdaptedDocument
from refine_server.ttt.interface.config import (
    AdaptConfig,
    OptimizerConfig,
    RolloutConfig,
    SamplingConfig,
)
from refine_server.ttt.interface.errors import DamagedError, IsolationError, RequestError
from refine_server.ttt.interface.events import (
    AdaptationEnded,
    AdaptationStarted,
    AdaptationStep,
    AnswerCompleted,
    AnswerDelta,
    BaseAnswered,
    ChoiceEnded,
    CompletionDelta,
    CompletionEnded,
    DocumentAdapted,
    DocumentRead,
    DocumentReading,
    Event,
    PromptRead,
    ShouldStop,
    never_stop,
)
from refine_server.ttt.interface.requests import (
    AdaptRequest,
    AnswerRequest,
    AskRequest,
    CompletionRequest,
    Work,
)
from support.fake_backend import FakeBackend

DOCUMENT = "The keeper writes the weather into a blue book every evening at eight."
ADAPT = AdaptConfig(
    rollouts=RolloutConfig(positions=2, per_position=2),
    optimizer=OptimizerConfig(steps=2),
    guard="none",
)
SAMPLING = SamplingConfig(max_tokens=3, ignore_eos=True)


@pytest.fixture(params=["fake", "tiny"])
def backend(request: pytest.FixtureRequest) -> Backend:
    """The scripted backend, and the real one of the tiny model with similar limits."""
    if request.param == "fake":
        return FakeBackend()
    return open_backend(Settings(model="tiny", max_document_tokens=160, max_query_tokens=60))


def perform(backend: Backend, work: Work, should_stop: ShouldStop = never_stop) -> list[Event]:
    encoded = backend.encode(work)
    events: Iterator[Event] = stream(lambda emit: backend.start(encoded, emit, should_stop))
    return list(events)


def adapt(backend: Backend, owner: str = "local") -> AdaptedDocument:
    last = perform(backend, AdaptRequest(DOCUMENT, ADAPT, owner=owner))[-1]
    assert isinstance(last, DocumentAdapted)
    return last.document


def kinds(events: list[Event]) -> list[type]:
    """Types of the events in their order, each once for those that repeat."""
    found: list[type] = []
    for event in events:
        if not found or found[-1] is not type(event):
            found.append(type(event))
    return found


def test_an_answer_is_read_adapted_and_decoded(backend: Backend) -> None:
    work = AnswerRequest(DOCUMENT, "When does he write?", ADAPT, SAMPLING, compare_base=True)
    events = perform(backend, work)
    assert kinds(events) == [
        DocumentReading,
        DocumentRead,
        BaseAnswered,
        AdaptationStarted,
        AdaptationStep,
        AdaptationEnded,
        AnswerDelta,
        AnswerCompleted,
    ]
    assert sum(isinstance(event, AdaptationStep) for event in events) == 2
    assert sum(isinstance(event, AnswerDelta) for event in events) == 3
    completed = events[-1]
    assert isinstance(completed, AnswerCompleted)
    assert completed.answer == "".join(e.text for e in events if isinstance(e, AnswerDelta))
    assert completed.usage.document_tokens == backend.encode(work).tokens
    assert completed.usage.completion_tokens == 3
    assert [step.step for step in completed.adaptation.steps] == [1, 2]


def test_a_document_is_adapted_to_and_asked(backend: Backend) -> None:
    events = perform(backend, AdaptRequest(DOCUMENT, ADAPT))
    assert kinds(events) == [
        *(DocumentReading, DocumentRead, AdaptationStarted, AdaptationStep),
        *(AdaptationEnded, DocumentAdapted),
    ]
    adapted = events[-1]
    assert isinstance(adapted, DocumentAdapted)
    answered = perform(backend, AskRequest(adapted.document, "When?", SAMPLING))
    assert kinds(answered) == [AnswerDelta, AnswerCompleted]


def test_each_prompt_is_read_and_each_choice_ends(backend: Backend) -> None:
    work = CompletionRequest(("The keeper", "A boat"), SAMPLING, n=2)
    events = perform(backend, work)
    assert kinds(events)[0] is PromptRead
    assert sum(isinstance(event, PromptRead) for event in events) == 2
    assert sorted(e.choice for e in events if isinstance(e, ChoiceEnded)) == [0, 1, 2, 3]
    assert {e.choice for e in events if isinstance(e, CompletionDelta)} == {0, 1, 2, 3}
    ended = events[-1]
    assert isinstance(ended, CompletionEnded)
    assert ended.prompt_tokens == backend.encode(work).tokens
    assert ended.completion_tokens == sum(isinstance(e, CompletionDelta) for e in events)


@pytest.mark.parametrize("steps", [0, 1])
def test_an_adaptation_stops_early_when_asked_and_keeps_its_steps(
    backend: Backend, steps: int
) -> None:
    """It is asked before every step, before the first one too."""
    work, made = backend.encode(AdaptRequest(DOCUMENT, ADAPT)), list[Event]()

    def emit(event: Event) -> None:
        made.append(event)

    def should_stop(seconds: float) -> str | None:
        return "shutdown" if kinds(made).count(AdaptationStep) == steps else None

    run(backend.start(work, emit, should_stop))
    last = made[-1]
    assert isinstance(last, DocumentAdapted)
    report = last.document.report
    assert (report.stopped, len(report.steps)) == ("shutdown", steps)
    assert report.kept_base_reason == (None if steps else "shutdown")


@pytest.mark.parametrize(
    ("work", "param", "code"),
    [
        (AnswerRequest("", "q"), "document", "empty"),
        (AnswerRequest("x", ""), "query", "empty"),
        (AdaptRequest("word " * 200, on_overflow="error"), "document", "document_too_long"),
        (AdaptRequest("word " * 800), "document", "document_too_long"),
        (AnswerRequest("x", "word " * 100), "query", "query_too_long"),
        (CompletionRequest(("",)), "prompt", "empty"),
        (CompletionRequest(((0,) * 300,)), "prompt", "context_length_exceeded"),
        (CompletionRequest(((10**6,),)), "prompt", "unknown_token"),
    ],
)
def test_invalid_work_is_refused_when_it_is_encoded(
    backend: Backend, work: Work, param: str, code: str
) -> None:
    with pytest.raises(RequestError) as refused:
        backend.encode(work)
    assert (refused.value.param, refused.value.code) == (param, code)


def test_a_document_is_of_use_to_its_owner_only(backend: Backend) -> None:
    document = adapt(backend, owner="a")
    with pytest.raises(IsolationError):
        perform(backend, AskRequest(document, "When?", owner="b"))


@pytest.mark.parametrize("operations", [1, 2, 3])
def test_closing_a_program_between_operations_ends_it(backend: Backend, operations: int) -> None:
    events: list[Event] = []
    encoded = backend.encode(AnswerRequest(DOCUMENT, "When?", ADAPT, SAMPLING))
    program = backend.start(encoded, events.append, never_stop)
    outcome: object = None
    for _ in range(operations):
        [outcome] = type(operation := resume(program, outcome)).run_batch([operation])
    count = len(events)
    program.close()
    assert len(events) == count
    assert AnswerCompleted not in kinds(events)
    with pytest.raises(RuntimeError):
        resume(program, outcome)


def test_no_work_changes_the_base_weights(backend: Backend) -> None:
    perform(backend, AnswerRequest(DOCUMENT, "When?", ADAPT, SAMPLING))
    perform(backend, AskRequest(adapt(backend), "When?", SAMPLING))
    assert backend.verify()


def test_a_dumped_document_answers_as_before(backend: Backend) -> None:
    document = adapt(backend)
    restored = backend.restore(*backend.dump(document))
    answers = [
        perform(backend, AskRequest(which, "When?", SAMPLING))[-1] for which in (document, restored)
    ]
    assert answers[0].answer == answers[1].answer  # type: ignore[union-attr]
    with pytest.raises(DamagedError):
        backend.restore(b"", backend.dump(document)[1])


def test_a_changed_weight_is_noticed() -> None:
    backend: Any = open_backend(Settings(model="tiny"))
    with torch.no_grad():
        next(iter(backend.model.parameters())).view(-1)[0] += 1e-3
    assert not backend.verify()
    assert not backend.is_unchanged()


def test_kernels_run_on_the_device_of_the_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    class OnSecondGPU:
        device = torch.device("cuda", 1)

    current: list[torch.device] = []
    monkeypatch.setattr(torch, "empty", lambda *_, device: OnSecondGPU)
    monkeypatch.setattr(torch.cuda, "set_device", current.append)
    monkeypatch.setattr(model_backend, "load", lambda *_, **__: 1 / 0)  # so far it must have come
    with pytest.raises(ZeroDivisionError):
        open_backend(Settings(model="tiny", device="cuda:1"))
    assert current == [torch.device("cuda", 1)]


@pytest.fixture
def threads() -> Iterator[int]:
    """Two threads before the test, and what there were after it."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield 2
    torch.set_num_threads(before)


def test_requests_to_a_small_model_share_the_threads_unless_configured(threads: int) -> None:
    seen = []
    for configured in (1, threads, None):
        torch.set_num_threads(threads)
        backend = open_backend(Settings(model="tiny", threads=configured))
        program = backend.start(backend.encode(SELF_CHECK), lambda _: None, never_stop)
        first = resume(program)
        seen.append((torch.get_num_threads(), first.threads))
        program.close()
    assert seen == [(1, 1), (threads, 1), (1, threads)]
