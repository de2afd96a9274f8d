"""Steps of a single request, and the error of their gradient."""

import torch

from refine_server.ttt.interface.config import AdaptConfig
from refine_server.ttt.pieces import run_pieces
from refine_server.ttt.refine.inputs.rows import Rows
from refine_server.ttt.refine.inputs.step_inputs import StepInputs
from refine_server.ttt.refine.loop import prepare
from refine_server.ttt.refine.loss import StepLoss, step_losses
from refine_server.ttt.refine.naive import naive_gradient
from refine_server.ttt.refine.step import AdaptationRun, AdaptStep, StepOutcome

TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5}
"""Maximum ``gradient_error`` by dtype."""


def prepared(document: Rows, settings: AdaptConfig) -> AdaptationRun:
    """Make an adaptation of the document's own fast weights, before its first step."""
    run = run_pieces(prepare(document, document.fast, settings))
    assert isinstance(run, AdaptationRun)
    return run


def loss_of(inputs: StepInputs) -> StepLoss:
    [loss] = step_losses([inputs])
    return loss


def step_alone(run: AdaptationRun, number: int = 1) -> StepOutcome:
    [outcome] = AdaptStep.run_batch([AdaptStep(run, number)])
    assert not isinstance(outcome, Exception)
    return outcome


def gradient_error(inputs: StepInputs) -> float:
    """Return the relative distance of a step's gradient from the naive step's."""
    before = inputs.generator.get_state()
    loss_of(inputs).total.backward()
    fast = inputs.fast
    ours = {n: torch.zeros_like(fast[n]) if fast[n].grad is None else fast[n].grad for n in fast}
    inputs.generator.set_state(before)  # so that the naive step draws the same rollouts
    naive, _ = naive_gradient(inputs)
    difference = torch.stack([(ours[name] - naive[name]).square().sum() for name in naive])
    length = torch.stack([gradient.square().sum() for gradient in naive.values()])
    return float((difference.sum() / length.sum()).sqrt())
