"""Cost estimates of requests, learned from the cost of earlier ones."""

from dataclasses import replace
from typing import Any, cast

import pytest

from refine_server.server.engine.backend.model_backend import ModelBackend
from refine_server.server.engine.scheduling.cost_model import (
    TYPICAL_TOKENS,
    CostModel,
    Rate,
    step_tokens,
)
from refine_server.server.settings import Settings
from refine_server.ttt.interface.config import (
    AdaptConfig,
    OnSpans,
    OptimizerConfig,
    RolloutConfig,
    SamplingConfig,
)
from refine_server.ttt.interface.events import (
    AdaptationStep,
    AnswerCompleted,
    CompletionEnded,
    DocumentRead,
    PromptRead,
    ScoredToken,
)
from refine_server.ttt.interface.reports import AdaptationReport, Timings, Usage
from refine_server.ttt.interface.requests import (
    AdaptRequest,
    AnswerRequest,
    AskRequest,
    CompletionRequest,
    Work,
)
from support.fake_backend import step_report


def phases(costs: CostModel, work: Work, tokens: int) -> tuple[float, float, float]:
    """Estimate the seconds to read, to adapt and to finish."""
    estimate = costs.estimate(work, tokens)
    return estimate.read, estimate.adapt, estimate.finish


def answered(tokens: int, seconds: float) -> AnswerCompleted:
    """Return the event of an answer that was decoded in ``seconds``."""
    return AnswerCompleted(
        answer="",
        base_answer=None,
        finish_reason="stop",
        adaptation=AdaptationReport(
            objective="none",
            steps=(),
            accepted_step=0,
            kept_base_reason=None,
            stopped=None,
            first_ntp_loss=None,
            final_ntp_loss=None,
            fast_weight_bytes=0,
        ),
        usage=Usage(document_tokens=0, query_tokens=1, completion_tokens=tokens, rollout_tokens=0),
        timings=Timings(
            prefill_seconds=0.0,
            adapt_seconds=0.0,
            judge_seconds=0.0,
            decode_seconds=seconds,
            time_to_first_token_seconds=0.0,
        ),
    )


def test_a_rate_follows_what_is_seen() -> None:
    rate = Rate(100.0)
    rate.observe(2.0, 4)
    assert rate.seconds == 0.5
    for _ in range(50):
        rate.observe(8.0, 4)
    assert rate.seconds == pytest.approx(2.0, rel=1e-3)
    rate.observe(1.0, 0)
    assert rate.seconds == pytest.approx(2.0, rel=1e-3)


def test_costs_are_learnt_from_events() -> None:
    costs = CostModel()
    config = AdaptConfig(
        rollouts=RolloutConfig(positions=2, per_position=3, tokens=5),
        optimizer=OptimizerConfig(steps=4),
    )
    work = AdaptRequest("text", config)
    costs.observe(work, 100, DocumentRead(100, 1.0))
    costs.observe(work, 100, AdaptationStep(step_report(1, seconds=16.0)))
    assert phases(costs, work, 100) == pytest.approx((1.0, 4 * 16.0, 1.0))  # it is read twice
    assert phases(costs, work, 200) == pytest.approx((2.0, 4 * 26.0, 2.0))
    limited = AdaptRequest("text", config.updated(optimizer={"max_seconds": 30.0}))
    assert phases(costs, limited, 200) == pytest.approx((2.0, 30.0, 2.0))
    short = AdaptRequest("text", config.updated(optimizer={"max_seconds": 5.0}))
    assert phases(costs, short, 200) == pytest.approx((2.0, 5.0, 2.0))
    asked = AskRequest(cast(Any, None), "?", SamplingConfig(max_tokens=30))
    assert phases(costs, asked, 100) == pytest.approx((1.0, 0.0, 1.0))


def test_an_answer_on_evidence_reads_its_document_once() -> None:
    costs = CostModel()
    work = AnswerRequest(
        "text",
        "?",
        AdaptConfig().updated(on={"kind": "evidence"}, optimizer={"steps": 1}, guard="none"),
        SamplingConfig(max_tokens=1),
    )
    assert phases(costs, work, 6000)[0] == pytest.approx(6.0)
    assert phases(costs, work, 6000)[2] == pytest.approx(1 / 30)
    guarded = replace(work, adapt=work.adapt.updated(guard="answer"))
    assert phases(costs, guarded, 6000)[2] == pytest.approx(2 / 30), "the base weights answer too"


def test_answers_are_expected_to_end_before_their_longest_length() -> None:
    costs = CostModel()
    asked = AskRequest(cast(Any, None), "?", SamplingConfig(max_tokens=4096))
    assert costs.estimate(asked, 0).finish == pytest.approx(2 * TYPICAL_TOKENS / 30)
    for _ in range(50):
        costs.observe(asked, 0, answered(tokens=10, seconds=1.0))
    assert costs.estimate(asked, 0).finish == pytest.approx(2 * 10 * 0.1, rel=1e-3)


def test_the_best_of_three_answers_says_nothing_of_one() -> None:
    """Its seconds are those of all three, and its tokens those of one."""
    costs = CostModel()
    costs.observe(AnswerRequest("text", "?", context="best"), 9, answered(tokens=1, seconds=99.0))
    assert costs.decode.seconds == CostModel().decode.seconds
    assert costs.answer_tokens.seconds == TYPICAL_TOKENS


def test_the_first_rates_are_measured_when_the_model_is_opened() -> None:
    backend = ModelBackend(Settings(model="tiny"))
    costs = CostModel()
    costs.on_opened(backend)
    guessed = CostModel()
    for rate in ("read", "step", "decode"):
        assert getattr(costs, rate).seconds != getattr(guessed, rate).seconds
    assert costs.answer_tokens.seconds == TYPICAL_TOKENS


def test_a_server_with_small_limits_keeps_its_guesses() -> None:
    costs = CostModel()
    costs.on_opened(ModelBackend(Settings(model="tiny", max_document_tokens=32)))
    assert costs.read.seconds == CostModel().read.seconds


def test_the_costs_of_completions_are_learnt_and_estimated() -> None:
    costs = CostModel()
    work = CompletionRequest(((1,) * 128, (1,) * 72), SamplingConfig(max_tokens=5), n=3)
    costs.observe(work, 200, PromptRead(0, 128, 64.0, ()))
    costs.observe(work, 200, PromptRead(1, 72, 99.0, ()))  # too short to measure
    costs.observe(work, 200, PromptRead(0, 128, 99.0, (ScoredToken(b"x"),)))  # more than reading
    timings = Timings(
        prefill_seconds=64.0,
        adapt_seconds=0.0,
        judge_seconds=0.0,
        decode_seconds=20.0,
        time_to_first_token_seconds=1.0,
    )
    costs.observe(work, 200, CompletionEnded(200, 30, timings))
    assert costs.estimate(work, 200).total == pytest.approx(200 * 0.5 + 2 * 3 * 5 * 2 / 3)


def test_a_step_on_spans_does_not_grow_with_the_document() -> None:
    local = AdaptConfig(objective="ntp", on=OnSpans(tokens=32), rollouts=RolloutConfig(positions=8))
    assert step_tokens(local, 1000) == step_tokens(local, 100_000) == 256
    asked = local.updated(on={"kind": "query_spans", "learn_as": "answer_in_context"})
    assert step_tokens(asked, 1000) == 1256
    whole = AdaptConfig(objective="ntp")
    assert step_tokens(whole, 1000) == 1000
    assert step_tokens(AdaptConfig(objective="none"), 1000) == 0
