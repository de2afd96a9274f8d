"""A step's trace: where its rollouts started, what they wrote, and how they were rewarded."""

import pytest
import torch

from refine_server.ttt.interface.config import AdaptConfig
from refine_server.ttt.interface.events import AdaptationStep, AnswerCompleted, DocumentAdapted
from refine_server.ttt.interface.reports import StepReport, StepTrace
from refine_server.ttt.interface.requests import AdaptRequest, AnswerRequest
from refine_server.ttt.models import CausalLM, load
from refine_server.ttt.programs.start import perform
from refine_server.ttt.refine import trace
from refine_server.ttt.refine.inputs.rows import Rows
from refine_server.ttt.refine.step import StepDone
from support.small_models import Families, Tokens
from support.steps import prepared, step_alone

DOCUMENT = "The harbour code is amber. The bakery owner is Tobias Hartley. " * 6


def step_report(families: Families, tokens: Tokens, **changes: object) -> tuple[StepReport, Rows]:
    settings = AdaptConfig(
        rollouts={"positions": 4, "per_position": 2}, guard="none", trace=True
    ).updated(**changes)
    model = families["delta_net"](torch.float64)
    weights = settings.fast_weights
    fast = model.new_fast_weights(weights.targets, weights.rank, settings.seed)
    rows = Rows(model, tokens(1, 90), fast, context_tokens=3, positions=4)
    outcome = step_alone(prepared(rows, settings))
    assert isinstance(outcome, StepDone)
    return outcome.report, rows


def traced(report: StepReport) -> StepTrace:
    assert report.trace is not None
    return report.trace


def test_a_trace_has_each_position_with_its_rollouts_and_rewards(
    families: Families, tokens: Tokens
) -> None:
    report, rows = step_report(families, tokens)
    positions = traced(report).positions
    assert len(positions) == 4
    assert traced(report).left_out == 0
    assert all(position.row == 0 for position in positions)
    starts = [position.token for position in positions]
    assert starts == sorted(starts)
    assert rows.first <= starts[0]
    assert all([len(rollout) for rollout in position.rollouts] == [5, 5] for position in positions)
    rewards = [reward for position in positions for reward in position.rewards]
    assert len(rewards) == 8
    assert sum(rewards) / 8 == pytest.approx(report.reward_mean)


def test_its_entropies_are_those_of_the_distributions_that_predict_the_tokens(
    families: Families, tokens: Tokens
) -> None:
    report, rows = step_report(families, tokens)
    before_the_step = rows.model.new_fast_weights("low_rank", 8, 0)
    with torch.no_grad():
        hidden = rows.model(rows.input_ids, None, before_the_step).hidden  # [1, T, D]
        log_prob = rows.model.head_logits(hidden[0], before_the_step).log_softmax(-1)
    entropy = -(log_prob.exp() * log_prob).sum(-1)  # [T]
    for position in traced(report).positions:
        assert position.entropy == pytest.approx(float(entropy[position.token - 1]))


def test_the_documents_own_continuation_is_the_last_rollout_and_has_no_reward(
    families: Families, tokens: Tokens
) -> None:
    report, rows = step_report(families, tokens, rollouts={"demonstration": True})
    for position in traced(report).positions:
        own = rows.input_ids[0, position.token : position.token + 5].tolist()
        assert len(position.rollouts) == 3
        assert list(position.rollouts[-1]) == own
        assert len(position.rewards) == 2


def test_positions_beyond_the_limit_are_counted_and_not_listed(
    families: Families, tokens: Tokens, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trace, "MAX_TOKENS", 11)  # a position has 2 rollouts of 5 tokens
    report, _ = step_report(families, tokens)
    assert len(traced(report).positions) == 2
    assert traced(report).left_out == 2


def test_there_is_no_trace_unasked_and_none_without_rollouts(
    families: Families, tokens: Tokens
) -> None:
    assert step_report(families, tokens, trace=False)[0].trace is None
    assert step_report(families, tokens, objective="ntp")[0].trace is None


@pytest.fixture(scope="module")
def tiny() -> CausalLM:
    return load("tiny")


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
