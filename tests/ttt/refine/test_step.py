"""Steps of several requests in one batch: each result is independent of the others."""

import threading
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from refine_server.ttt.batching import run_batch
from refine_server.ttt.fast_weights import FastWeights
from refine_server.ttt.interface.config import AdaptConfig, OnSpans
from refine_server.ttt.models import CausalLM
from refine_server.ttt.refine import guard, held_out
from refine_server.ttt.refine.inputs.rows import Rows
from refine_server.ttt.refine.step import (
    AdaptationRun,
    AdaptStep,
    NoImprovement,
    StepDone,
    StepRejected,
)
from support.small_models import Families, Tokens
from support.steps import prepared, step_alone


def config(**changes: object) -> AdaptConfig:
    defaults = {
        "rollouts": {"positions": 4, "per_position": 2},
        "optimizer": {"steps": 3},
        "fast_weights": {"rank": 4},
        "guard": "none",
    }
    return AdaptConfig(**defaults).updated(**changes)


def three_runs(model: CausalLM, tokens: Tokens, **changes: object) -> list[AdaptationRun]:
    """Make runs on 101, 90 and 83 tokens; seeds, rates, limits, rewards and owners differ."""
    own: list[dict[str, object]] = [
        {"rollouts": {"reward": "hybrid"}, "optimizer": {"learning_rate": 0.02}, "seed": 1},
        {
            "rollouts": {"reward": "exact"},
            "loss": {"grpo": 1.0},
            "optimizer": {"max_grad_norm": 0.01},
            "seed": 2,
        },
        {
            "rollouts": {"reward": "cosine"},
            "loss": {"kl": 0.1},
            "optimizer": {"learning_rate": 2e-4},
            "seed": 3,
        },
    ]
    runs = []
    for r, (length, fields) in enumerate(zip((101, 90, 83), own, strict=True)):
        settings = config(**fields).updated(**changes)
        fresh = model.new_fast_weights(
            settings.fast_weights.targets, settings.fast_weights.rank, settings.seed
        )
        generator = torch.Generator().manual_seed(r)
        # Not zero, where AdamW would turn rounding errors into whole steps.
        noise = {
            n: 0.05 * torch.randn(t.shape, generator=generator) for n, t in fresh.tensors.items()
        }
        fast = FastWeights({n: t + noise[n].to(t) for n, t in fresh.tensors.items()}, f"owner {r}")
        ids = tokens(1, length, seed=r)
        runs.append(prepared(Rows(model, ids, fast, context_tokens=3 + r, positions=4), settings))
    return runs


def steps_of(runs: Sequence[AdaptationRun], number: int = 1) -> list[AdaptStep]:
    return [AdaptStep(run, number) for run in runs]


def difference(a: AdaptationRun, b: AdaptationRun) -> float:
    return max(float((a.fast[n] - b.fast[n]).detach().abs().max()) for n in a.fast)


SHAPES: dict[str, dict[str, object]] = {
    "low_rank": {},
    "fast_weights": {"fast_weights": {"targets": "fast_weights"}},
    "ntp": {"objective": "ntp"},
    "spans": {"on": OnSpans(), "rollouts": {"positions": 2}},
    "spans_with_ntp_on_the_document": {
        "on": OnSpans(ntp_on="document"),
        "rollouts": {"positions": 2},
    },
    "reference": {"rollouts": {"demonstration": True}},
}


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("family", ["delta_net", "overlay", "qwen3_next"])
def test_steps_in_a_batch_are_those_made_alone(
    families: Families, family: str, shape: dict[str, object], tokens: Tokens
) -> None:
    model = families[family](torch.float64)
    alone, together = three_runs(model, tokens, **shape), three_runs(model, tokens, **shape)
    for number in (1, 2):
        steps = steps_of(together, number)
        assert all(step.can_batch_with(steps[0]) for step in steps)
        outcomes = run_batch(steps)
        for lone, batched, outcome in zip(alone, together, outcomes, strict=True):
            expected = step_alone(lone, number)
            assert isinstance(outcome, StepDone)
            assert isinstance(expected, StepDone)
            assert outcome.report.loss == pytest.approx(expected.report.loss, abs=1e-10)
            reward = expected.report.reward_mean
            assert outcome.report.reward_mean == pytest.approx(reward, abs=1e-10)
            norm = expected.report.grad_norm
            assert outcome.report.grad_norm == pytest.approx(norm, rel=1e-9)
            assert difference(lone, batched) <= 1e-10


def test_single_precision_steps_in_a_batch_are_those_made_alone(
    families: Families, tokens: Tokens
) -> None:
    model = families["overlay"](torch.float32)
    alone, together = three_runs(model, tokens), three_runs(model, tokens)
    run_batch(steps_of(together))
    for lone, batched in zip(alone, together, strict=True):
        step_alone(lone)
        assert difference(lone, batched) <= 1e-5


def test_a_step_without_finite_values_is_rejected_by_itself(
    families: Families, tokens: Tokens
) -> None:
    model = families["delta_net"](torch.float64)
    alone, together = three_runs(model, tokens), three_runs(model, tokens)
    for tensor in together[1].fast.parameters():
        tensor.data.fill_(float("nan"))
    first, broken, third = run_batch(steps_of(together))
    assert isinstance(broken, StepRejected)
    assert broken.reason == guard.NON_FINITE_LOSS
    assert isinstance(first, StepDone)
    assert isinstance(third, StepDone)
    for r in (0, 2):
        step_alone(alone[r])
        assert difference(alone[r], together[r]) <= 1e-10


def test_a_failing_request_does_not_affect_the_others(
    families: Families, tokens: Tokens, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The batch is run again one by one, and the others draw the same random numbers."""
    model = families["delta_net"](torch.float64)
    alone, together = three_runs(model, tokens), three_runs(model, tokens)

    def fail(*_: object) -> Tensor:
        raise MemoryError("too large")

    monkeypatch.setattr(together[2].inputs.rollout_rows, "rollout_starts", fail)
    *outcomes, failed = run_batch(steps_of(together))
    assert isinstance(failed, MemoryError)
    for lone, batched, outcome in zip(alone[:2], together[:2], outcomes, strict=True):
        expected = step_alone(lone)
        assert isinstance(expected, StepDone)
        assert expected.report.loss == pytest.approx(outcome.report.loss, abs=1e-10)
        assert difference(lone, batched) <= 1e-10


def test_a_failing_update_does_not_affect_the_others(
    families: Families, tokens: Tokens, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = families["delta_net"](torch.float64)
    alone, together = three_runs(model, tokens), three_runs(model, tokens)

    def fail(*_: object) -> Tensor:
        raise RuntimeError("broken")

    monkeypatch.setattr(together[0].optimizer, "step", fail)
    failed, *_ = run_batch(steps_of(together))
    assert isinstance(failed, RuntimeError)
    for lone, batched in zip(alone[1:], together[1:], strict=True):
        step_alone(lone)
        assert difference(lone, batched) <= 1e-10


@pytest.mark.parametrize("threads", [2, 3])
def test_parts_of_a_batch_run_in_threads_of_their_own(
    families: Families, tokens: Tokens, monkeypatch: pytest.MonkeyPatch, threads: int
) -> None:
    """Results keep their order; a step in a thread of its own is bitwise the same as alone."""
    model = families["delta_net"](torch.float32)
    monkeypatch.setattr(model, "threads", threads)
    alone, together = three_runs(model, tokens), three_runs(model, tokens)
    ran_in = []
    step = together[1].optimizer.step

    def recording(active: Tensor) -> Tensor:
        ran_in.append(threading.get_ident())
        return step(active)

    monkeypatch.setattr(together[1].optimizer, "step", recording)
    monkeypatch.setattr(together[2].inputs.rollout_rows, "rollout_starts", lambda *_: 1 / 0)
    first, second, failed = run_batch(steps_of(together))
    assert isinstance(failed, ZeroDivisionError)
    assert len(ran_in) == 1
    assert ran_in != [threading.get_ident()]
    for lone, batched, outcome in zip(alone[:2], together[:2], (first, second), strict=True):
        expected = step_alone(lone)
        assert isinstance(expected, StepDone)
        assert outcome.report.loss == expected.report.loss
        assert difference(lone, batched) == 0


def two_runs_of_which_one_is_out_of_patience(
    model: CausalLM, tokens: Tokens, monkeypatch: pytest.MonkeyPatch
) -> list[AdaptationRun]:
    runs = []
    for seed in range(2):
        settings = config(
            fast_weights={"targets": "low_rank", "rank": 8}, guard="held_out", seed=seed
        )
        fast = model.new_fast_weights("low_rank", 8, seed)
        runs.append(prepared(Rows(model, tokens(1, 200), fast, positions=4), settings))
    monkeypatch.setattr(runs[0].evaluator, "_since_best", held_out.PATIENCE)
    return runs


@pytest.mark.parametrize("family", ["delta_net", "overlay"])
def test_a_request_out_of_patience_leaves_a_batch_unchanged(
    families: Families, family: str, tokens: Tokens, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The others' gradients are unaffected, and its own weights are not changed."""
    model = families[family](torch.float64)
    alone, together = (
        two_runs_of_which_one_is_out_of_patience(model, tokens, monkeypatch) for _ in range(2)
    )
    before = [t.clone() for t in together[0].fast.parameters()]
    expected = [step_alone(run) for run in alone]
    outcomes = AdaptStep.run_batch(steps_of(together))
    assert outcomes[0] == expected[0] == NoImprovement()
    assert all(map(torch.equal, before, together[0].fast.parameters()))
    assert isinstance(outcomes[1], StepDone)
    assert isinstance(expected[1], StepDone)
    assert outcomes[1].report.loss == pytest.approx(expected[1].report.loss, abs=1e-10)
    for a, b in zip(alone[1].fast.parameters(), together[1].fast.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-9, rtol=0)


def changed(run: AdaptationRun, **inputs: Any) -> AdaptStep:
    return AdaptStep(replace(run, inputs=replace(run.inputs, **inputs)), 1)


def test_only_steps_of_one_shape_and_similar_length_share_a_batch(
    families: Families, tokens: Tokens
) -> None:
    model, other_model = (families["delta_net"](torch.float32) for _ in range(2))
    run = three_runs(model, tokens)[0]
    head, config_of = AdaptStep(run, 1), run.config.updated
    assert changed(run, config=config_of(seed=9)).can_batch_with(head)
    assert changed(run, config=config_of(rollouts={"reward": "exact"})).can_batch_with(head)
    others: tuple[dict[str, Any], ...] = (
        {"rollouts": {"per_position": 3}},
        {"objective": "ntp"},
        {"fast_weights": {"rank": 5}},
        {"rollouts": {"demonstration": True}},
    )
    for own_shape in others:
        assert not changed(run, config=config_of(**own_shape)).can_batch_with(head)
    short = Rows(model, tokens(1, 60), run.fast, positions=4)
    assert not changed(run, ntp_rows=short, rollout_rows=short).can_batch_with(head)
    fewer = Rows(model, tokens(1, 101), run.fast, positions=2)
    assert not changed(run, ntp_rows=fewer, rollout_rows=fewer).can_batch_with(head)
    assert not AdaptStep(three_runs(other_model, tokens)[0], 1).can_batch_with(head)


def test_full_copies_and_states_of_one_length_only_are_not_batched(
    families: Families, tokens: Tokens
) -> None:
    whole = AdaptStep(
        three_runs(families["delta_net"](torch.float32), tokens, fast_weights={"targets": "all"})[
            0
        ],
        1,
    )
    lact = AdaptStep(three_runs(families["lact"](torch.float32), tokens)[0], 1)
    for step in (whole, lact):
        assert step.max_batch_size == 1
        assert not step.can_batch_with(step)
