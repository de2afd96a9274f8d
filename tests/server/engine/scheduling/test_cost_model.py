"""Cost estimates of requests, learned from the cost of earlier ones."""

from typing import Any, cast

import pytest

from refine_server.server.engine.scheduling.cost_model import CostModel, Rate, step_tokens
from refine_server.ttt.interface.config import (
    AdaptConfig,
    OnSpans,
    OptimizerConfig,
    RolloutConfig,
    SamplingConfig,
)
from refine_server.ttt.interface.events import (
    AdaptationStep,
    CompletionEnded,
    DocumentRead,
    PromptRead,
    ScoredToken,
)
from refine_server.ttt.interface.reports import Timings
from refine_server.ttt.interface.requests import AdaptRequest, AskRequest, CompletionRequest
from support.fake_backend import step_report


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
    assert costs.estimate(work, 100) == pytest.approx(1.0 + 4 * 16.0)
    assert costs.estimate(work, 200) == pytest.approx(2.0 + 4 * 26.0)
    short = AdaptRequest("text", config.updated(optimizer={"max_seconds": 5.0}))
    assert costs.estimate(short, 200) == 5.0
    asked = AskRequest(cast(Any, None), "?", SamplingConfig(max_tokens=30))
    assert costs.estimate(asked, 100) == pytest.approx(1.0 + 1.0)


def test_the_costs_of_completions_are_learnt_and_estimated() -> None:
    costs = CostModel()
    work = CompletionRequest(((1,) * 128, (1,) * 72), SamplingConfig(max_tokens=5), n=3)
    costs.observe(work, 200, PromptRead(0, 128, 64.0, ()))
    costs.observe(work, 200, PromptRead(1, 72, 99.0, ()))  # too short to measure
    costs.observe(work, 200, PromptRead(0, 128, 99.0, (ScoredToken(b"x"),)))  # more than reading
    timings = Timings(
        prefill_seconds=64.0,
        adapt_seconds=0.0,
        decode_seconds=20.0,
        time_to_first_token_seconds=1.0,
    )
    costs.observe(work, 200, CompletionEnded(200, 10, timings))
    assert costs.estimate(work, 200) == pytest.approx(200 * 0.5 + 2 * 3 * 5 * 2.0)


def test_a_step_on_spans_does_not_grow_with_the_document() -> None:
    local = AdaptConfig(objective="ntp", on=OnSpans(tokens=32), rollouts=RolloutConfig(positions=8))
    assert step_tokens(local, 1000) == step_tokens(local, 100_000) == 256
    asked = local.updated(on={"kind": "query_spans", "learn_as": "answer_in_context"})
    assert step_tokens(asked, 1000) == 1256
    whole = AdaptConfig(objective="ntp")
    assert step_tokens(whole, 1000) == 1000
    assert step_tokens(AdaptConfig(objective="none"), 1000) == 0
