"""A step's trace: where its rollouts started, what they wrote, and how they were rewarded."""

from dataclasses import replace

import pytest
import torch

from refine_server.ttt.decoding.token_bytes import TokenBytes
from refine_server.ttt.interface.config import AdaptConfig
from refine_server.ttt.interface.events import AdaptationStep, AnswerCompleted, DocumentAdapted
from refine_server.ttt.interface.reports import StepReport
from refine_server.ttt.interface.requests import AdaptRequest, AnswerRequest
from refine_server.ttt.interface.traces import StepTrace
from refine_server.ttt.models import CausalLM, load
from refine_server.ttt.programs.start import perform
from refine_server.ttt.refine.inputs.rows import Rows
from refine_server.ttt.refine.step import StepDone
from refine_server.ttt.tracing import step
from refine_server.ttt.tracing.characters import Characters
from refine_server.ttt.tracing.step import StepTracer
from refine_server.ttt.tracing.weights import WeightChanges
from support.small_models import Families, Tokens
from support.steps import prepared, step_alone

DOCUMENT = "The harbour code is amber. The bakery owner is Tobias Hartley. " * 6


@pytest.fixture(scope="module")
def tiny() -> CausalLM:
    return load("tiny")


class Stepper:
    """Makes one step of a small random model, whose tokens each stand for two characters."""

    def __init__(self, families: Families, tokens: Tokens, tiny: CausalLM) -> None:
        self.families, self.tokens, self.token_bytes = families, tokens, TokenBytes(tiny.tokenizer)

    def __call__(self, **changes: object) -> tuple[StepReport, Rows]:
        settings = AdaptConfig(
            rollouts={"positions": 4, "per_position": 2}, guard="none", trace=True
        ).updated(**changes)
        model = self.families["delta_net"](torch.float64)
        weights = settings.fast_weights
        fast = model.new_fast_weights(weights.targets, weights.rank, settings.seed)
        rows = Rows(model, self.tokens(1, 90), fast, context_tokens=3, positions=4)
        run = prepared(rows, settings)
        tracer = StepTracer(
            rows=rows,
            document_context=3,
            characters=Characters(starts=tuple(range(0, 174, 2)), ends=tuple(range(2, 176, 2))),
            steps=settings.optimizer.steps,
            changes=WeightChanges(model, fast),
            token_bytes=self.token_bytes,
        )
        outcome = step_alone(replace(run, tracer=tracer))
        assert isinstance(outcome, StepDone)
        return outcome.report, rows


@pytest.fixture
def step_report(families: Families, tokens: Tokens, tiny: CausalLM) -> Stepper:
    return Stepper(families, tokens, tiny)


def traced(report: StepReport) -> StepTrace:
    assert report.trace is not None
    return report.trace


def test_a_trace_has_each_position_with_its_rollouts_and_rewards(step_report: Stepper) -> None:
    report, rows = step_report()
    trace = traced(report)
    assert len(trace.positions) == 4
    assert trace.left_out == 0
    assert all(position.row == 0 for position in trace.positions)
    starts = [position.token for position in trace.positions]
    assert starts == sorted(starts)
    assert rows.first <= starts[0]
    rollouts = [rollout for position in trace.positions for rollout in position.rollouts]
    assert [len(rollout.tokens) for rollout in rollouts] == [5] * 8
    assert not any(rollout.is_demonstration for rollout in rollouts)
    assert sum(rollout.reward for rollout in rollouts) / 8 == pytest.approx(report.reward_mean)


def test_a_position_has_the_documents_own_continuation_and_its_characters(
    step_report: Stepper,
) -> None:
    report, rows = step_report()
    for position in traced(report).positions:
        own = rows.input_ids[0, position.token : position.token + 5].tolist()
        assert list(position.own.tokens) == own
        first = position.token - 3  # of the document's tokens; each has two characters
        assert (position.start, position.end) == (2 * first, 2 * first + 10)
        for rollout in position.rollouts:
            matches = [a == b for a, b in zip(rollout.tokens, own, strict=True)]
            assert list(rollout.matches) == matches
            assert rollout.reward == pytest.approx(sum(matches) / 5)


def test_its_advantages_are_those_of_the_group(step_report: Stepper) -> None:
    report, _ = step_report(rollouts={"per_position": 8, "temperature": 0.5})
    for position in traced(report).positions:
        rewards = torch.tensor([rollout.reward for rollout in position.rollouts])
        advantages = torch.tensor([rollout.advantage for rollout in position.rollouts])
        expected = (rewards - rewards.mean()) / rewards.std()
        assert torch.allclose(advantages, expected.nan_to_num(), atol=1e-3)


def test_its_entropies_are_those_of_the_distributions_that_predict_the_tokens(
    step_report: Stepper,
) -> None:
    report, rows = step_report()
    before_the_step = rows.model.new_fast_weights("low_rank", 8, 0)
    with torch.no_grad():
        hidden = rows.model(rows.input_ids, None, before_the_step).hidden  # [1, T, D]
        log_prob = rows.model.head_logits(hidden[0], before_the_step).log_softmax(-1)
    entropy = -(log_prob.exp() * log_prob).sum(-1)  # [T]
    for position in traced(report).positions:
        assert position.entropy == pytest.approx(float(entropy[position.token - 1]))


def test_a_demonstration_is_the_last_rollout_of_its_position(step_report: Stepper) -> None:
    report, _ = step_report(rollouts={"demonstration": True})
    for position in traced(report).positions:
        *sampled, last = position.rollouts
        assert len(sampled) == 2
        assert last.is_demonstration
        assert last.tokens == position.own.tokens
        assert all(last.matches)
        assert last.reward == 1.0


def test_positions_beyond_the_limit_are_counted_and_not_listed(
    step_report: Stepper, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(step, "MAX_ROLLOUT_TOKENS", 8 * 29)  # 8 steps; a position has 10 tokens
    report, _ = step_report()
    assert len(traced(report).positions) == 2
    assert traced(report).left_out == 2


def test_there_is_no_trace_unasked(families: Families, tokens: Tokens) -> None:
    settings = AdaptConfig(guard="none")
    model = families["delta_net"](torch.float64)
    rows = Rows(model, tokens(1, 90), model.new_fast_weights("low_rank", 8, 0), positions=4)
    outcome = step_alone(prepared(rows, settings))
    assert isinstance(outcome, StepDone)
    assert outcome.report.trace is None


def test_a_step_without_rollouts_tells_its_changes(step_report: Stepper) -> None:
    trace = traced(step_report(objective="ntp")[0])
    assert trace.positions == ()
    assert [change.layer for change in trace.weights] == [0, 1]
    assert all(change.change > 0 for change in trace.weights)


def settings(**changes: object) -> AdaptConfig:
    return AdaptConfig(optimizer={"steps": 1}, guard="none", trace=True).updated(**changes)


def test_an_answer_reports_the_traces_and_is_not_changed_by_them(tiny: CausalLM) -> None:
    answers = []
    for asked in (True, False):
        request = AnswerRequest(DOCUMENT, "harbour code", settings(trace=asked))
        *_, last = perform(tiny, request)
        assert isinstance(last, AnswerCompleted)
        answers.append(last)
    assert answers[0].adaptation.steps[0].trace is not None
    assert answers[0].answer == answers[1].answer
    assert answers[0].adaptation.without_traces().final_ntp_loss == pytest.approx(
        answers[1].adaptation.final_ntp_loss
    )


@pytest.mark.parametrize("on", ["document", "evidence"])
def test_a_kept_adaptation_tells_traces_and_does_not_keep_them(tiny: CausalLM, on: str) -> None:
    """Rollouts may quote the document, whose tokens are not kept with an adaptation."""
    config = AdaptConfig(optimizer={"steps": 1}, trace=True).updated(on={"kind": on}, guard="none")
    queries = ("harbour code",) if on == "evidence" else ()
    *events, last = perform(tiny, AdaptRequest(DOCUMENT, config, queries=queries))
    [step] = (event for event in events if isinstance(event, AdaptationStep))
    assert step.report.trace is not None
    assert isinstance(last, DocumentAdapted)
    assert [kept.trace for kept in last.document.report.steps] == [None]
