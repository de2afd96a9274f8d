"""From document to answer on the bundled tiny model: events, isolation, fallback to the base."""

import hashlib
import itertools
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from refine_server.ttt.interface.config import (
    AdaptConfig,
    OnDocument,
    OnPrompt,
    OnQuerySpans,
    OnSpans,
    OptimizerConfig,
    RolloutConfig,
    SamplingConfig,
)
from refine_server.ttt.interface.errors import RequestError
from refine_server.ttt.interface.events import (
    AdaptationEnded,
    AdaptationStarted,
    AdaptationStep,
    AnswerCompleted,
    AnswerDelta,
    BaseAnswered,
    DocumentRead,
    DocumentReading,
    Event,
)
from refine_server.ttt.interface.requests import AnswerRequest, Limits
from refine_server.ttt.models import CausalLM, load
from refine_server.ttt.programs.start import perform
from refine_server.ttt.refine import guard
from support.paces import FixedPace

EXAMPLES = Path(__file__).parents[3] / "examples"
SHORT = SamplingConfig(max_tokens=8)


@pytest.fixture(scope="module")
def tiny() -> CausalLM:
    return load("tiny")


def example(name: str) -> tuple[str, list[dict]]:
    spec = json.loads((EXAMPLES / f"{name}.json").read_text())
    return (EXAMPLES / spec["document"]).read_text(), spec["questions"]


def request(document: str, query: str, *, compare_base: bool = False, **adapt) -> AnswerRequest:
    settings = AdaptConfig(
        rollouts=RolloutConfig(positions=4), optimizer=OptimizerConfig(steps=3)
    ).updated(**adapt)
    return AnswerRequest(document, query, settings, SHORT, compare_base)


def completed(events: Iterator[Event]) -> AnswerCompleted:
    *_, last = events
    assert isinstance(last, AnswerCompleted)
    return last


def base_hash(model: CausalLM) -> str:
    digest = hashlib.sha256()
    for name, parameter in sorted(model.named_parameters()):
        digest.update(name.encode())
        digest.update(parameter.detach().contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


@pytest.mark.parametrize("objective", ["refine", "ntp", "none"])
@pytest.mark.parametrize(
    "on", [OnDocument(), OnSpans(), OnPrompt()], ids=["document", "spans", "prompt"]
)
def test_tiny_answers_its_own_example(tiny, objective, on) -> None:
    document, questions = example("tiny_example")
    for question in questions:
        settings = {"objective": objective, "on": on, "guard": "none"}
        asked = request(document, question["query"], **settings)
        result = completed(perform(tiny, asked))
        assert any(a.lower() in result.answer.lower() for a in question["answers"])
        assert result.adaptation.adapted is (objective != "none")


@pytest.mark.parametrize("learn_as", ["text", "answer", "answer_in_context"])
def test_spans_are_chosen_by_the_query(tiny, learn_as) -> None:
    document, questions = example("tiny_example")
    on, rate = OnQuerySpans(learn_as=learn_as), {"learning_rate": 2e-3}
    settings = {"on": on, "optimizer": rate, "guard": "none"}
    for question in questions[:2]:
        asked = request(document, question["query"], **settings)
        result = completed(perform(tiny, asked))
        assert any(a.lower() in result.answer.lower() for a in question["answers"])
        assert result.adaptation.accepted_step == 3
        assert result.adaptation.final_ntp_loss < result.adaptation.first_ntp_loss
    other = completed(perform(tiny, request(document, "zzz?", **settings)))
    assert (other.adaptation.kept_base_reason, other.adaptation.accepted_step) == (
        "nothing_similar",
        0,
    )


def test_each_piece_of_the_reading_is_told(tiny, monkeypatch) -> None:
    monkeypatch.setattr(tiny, "pace", FixedPace(64))
    document, questions = example("tiny_example")
    work = request(document, questions[0]["query"], compare_base=True)
    events = list(perform(tiny, work))
    told = [event for event in events if isinstance(event, DocumentReading)]
    read = next(event for event in events if isinstance(event, DocumentRead))
    pieces = read.document_tokens // 64
    assert len(told) >= pieces > 2
    assert [event.tokens_read for event in told] == sorted({event.tokens_read for event in told})
    assert told[0].tokens_read == 0
    assert told[-1].tokens_read < read.document_tokens
    assert {event.document_tokens for event in told} == {read.document_tokens}


def test_events_come_in_order(tiny) -> None:
    document, questions = example("tiny_example")
    asked = request(document, questions[0]["query"], compare_base=True)
    events = list(perform(tiny, asked))
    kinds = [kind for kind, _ in itertools.groupby(type(e) for e in events)]
    assert kinds == [
        DocumentReading,
        DocumentRead,
        BaseAnswered,
        AdaptationStarted,
        AdaptationStep,
        AdaptationEnded,
        AnswerDelta,
        AnswerCompleted,
    ]
    last = events[-1]
    assert "".join(e.text for e in events if isinstance(e, AnswerDelta)) == last.answer
    assert last.base_answer == next(e.text for e in events if isinstance(e, BaseAnswered))
    assert [s.step for s in last.adaptation.steps] == [1, 2, 3]
    assert last.usage.rollout_tokens == sum(s.rollout_tokens for s in last.adaptation.steps) > 0
    assert last.usage.document_tokens == events[0].document_tokens
    timings = last.timings
    before = timings.prefill_seconds + timings.adapt_seconds + timings.judge_seconds
    assert timings.time_to_first_token_seconds >= before
    judged = sum(result.seconds for result in last.adaptation.held_out)
    assert timings.judge_seconds == pytest.approx(judged)


def test_documents_do_not_see_each_other(tiny) -> None:
    document, questions = example("tiny_example")
    other, other_questions = example("tiny_long")
    first = request(document, questions[0]["query"], optimizer={"learning_rate": 0.02})
    second = request(other, other_questions[0]["query"], optimizer={"learning_rate": 0.02}, seed=7)

    def results(*order: AnswerRequest) -> list[tuple]:
        return [signature(completed(perform(tiny, r))) for r in order]

    alone = results(first) + results(second)
    assert results(first, second) == alone
    assert results(second, first) == alone[::-1]
    assert [signature(r) for r in taking_turns(tiny, first, second)] == alone


def taking_turns(model: CausalLM, *requests: AnswerRequest) -> list[AnswerCompleted]:
    runs = [perform(model, r) for r in requests]
    ended: dict[int, AnswerCompleted] = {}
    while len(ended) < len(runs):
        for i, run in enumerate(runs):
            event = next(run, None)
            if isinstance(event, AnswerCompleted):
                ended[i] = event
    return [ended[i] for i in range(len(runs))]


def signature(result: AnswerCompleted) -> tuple:
    """Return the parts of a result that must not depend on other requests."""
    steps = [(s.loss, s.grpo_loss, s.reward_mean, s.grad_norm) for s in result.adaptation.steps]
    return (result.answer, steps, result.adaptation.final_ntp_loss)


def test_base_weights_never_change(tiny, monkeypatch) -> None:
    document, questions = example("tiny_example")
    before = base_hash(tiny)
    for targets in ("fast_weights", "low_rank", "all"):
        own = {"targets": targets}
        completed(perform(tiny, request(document, questions[0]["query"], fast_weights=own)))
    cancelled = perform(tiny, request(document, questions[0]["query"]))
    while not isinstance(next(cancelled), AdaptationStep):
        pass
    cancelled.close()
    with pytest.raises(RequestError):
        next(perform(tiny, request("", "What?")))
    monkeypatch.setattr(guard, "check_step", lambda *_: guard.NON_FINITE_LOSS)
    completed(perform(tiny, request(document, questions[0]["query"])))
    assert base_hash(tiny) == before


def test_a_failed_adaptation_is_answered_from_the_base(tiny) -> None:
    document, questions = example("tiny_example")
    wild = {"learning_rate": 10.0, "steps": 4}
    asked = request(document, questions[0]["query"], optimizer=wild, compare_base=True)
    result = completed(perform(tiny, asked))
    assert result.adaptation.kept_base_reason in (guard.NO_BETTER_STEP, guard.NON_FINITE_LOSS)
    assert not result.adaptation.adapted
    assert result.answer == result.base_answer


def test_limits_hold_before_anything_is_computed(tiny) -> None:
    with pytest.raises(RequestError, match="at most 20") as error:
        next(perform(tiny, request("word " * 50, "What?"), limits=Limits(document_tokens=5)))
    assert error.value.code == "document_too_long"
