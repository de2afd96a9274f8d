"""A whole step through the Triton forms, in the interpreter: loss, gradient and update."""

from contextlib import suppress

import pytest
import torch

pytest.importorskip("triton")

from refine_server.kernels import dispatch
from refine_server.ttt.fast_weights import FastWeights
from refine_server.ttt.interface.config import AdaptConfig, LossConfig, RolloutConfig
from refine_server.ttt.interface.reports import StepReport
from refine_server.ttt.refine.inputs.rows import Rows
from refine_server.ttt.refine.step import AdaptationRun, StepDone
from support.small_models import MakeModel, Perturbed, Tokens
from support.steps import step_alone

SETTINGS = AdaptConfig(
    rollouts=RolloutConfig(positions=1, per_position=2, tokens=3, reward="hybrid"),
    loss=LossConfig(kl=0.1),
)


def test_a_step_is_the_same(
    make_model: MakeModel,
    tokens: Tokens,
    perturbed: Perturbed,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = make_model(torch.float32)

    def step() -> tuple[StepReport, FastWeights]:
        fast = perturbed(model)
        document = Rows(model, tokens(1, 30), fast)
        outcome = step_alone(AdaptationRun.of(document, fast, SETTINGS))
        assert isinstance(outcome, StepDone)
        return outcome.report, fast

    expected, expected_fast = step()
    for name, op in list(vars(dispatch).items()):
        if name[0] != "_" and hasattr(op, "__wrapped__"):  # an op that has a form for GPUs
            with suppress(ModuleNotFoundError):  # which need not be in Triton
                form = dispatch._form(op.__wrapped__, "triton_impl")
                monkeypatch.setattr(dispatch, name, form)
    actual, actual_fast = step()
    fields = ("loss", "ntp_loss", "kl", "reward_mean", "entropy_mean", "grad_norm")
    for field in fields:  # kl is a small difference of numbers around 1, so fp32 keeps 1e-7 of it
        near = pytest.approx(getattr(expected, field), rel=1e-4, abs=1e-7)
        assert getattr(actual, field) == near, field
    moved = 0.0
    for name in expected_fast:
        gradient, other = expected_fast[name].grad, actual_fast[name].grad
        assert gradient is not None
        assert other is not None
        size = gradient.abs().max().clamp_min(1e-3)
        assert float((gradient - other).abs().max() / size) < 1e-3, name
        moved += float((actual_fast[name] - perturbed(model)[name]).detach().abs().max())
    assert moved > 0
