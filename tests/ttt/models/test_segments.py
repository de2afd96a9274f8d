"""Reading in segments gives the gradient of a single reading, piece by piece, with less memory."""

from typing import Any

import pytest
import torch
from torch import Tensor

from refine_server.ttt.fast_weights import FastWeights
from refine_server.ttt.footprint.live_bytes import LiveBytes
from refine_server.ttt.interface.config import AdaptConfig, RolloutConfig
from refine_server.ttt.models import CausalLM, segments
from refine_server.ttt.models.segments import activation_bytes, trunk_in_pieces
from refine_server.ttt.models.tape import Graph, Tape
from refine_server.ttt.pieces import run_pieces
from refine_server.ttt.refine.inputs.rows import Rows
from refine_server.ttt.refine.inputs.step_inputs import StepInputs
from refine_server.ttt.refine.loss import losses_in_pieces, step_losses
from support.paces import FixedPace
from support.small_models import FAMILIES, Families, Perturbed, Tokens

TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5}
CONFIG = AdaptConfig(
    rollouts=RolloutConfig(positions=4, per_position=2, reward="hybrid"), guard="none"
)


def step_inputs(model: CausalLM, ids: Tensor, fast: FastWeights) -> StepInputs:
    rows = Rows(model, ids, fast, positions=CONFIG.rollouts.positions)
    return StepInputs.of(rows, fast, CONFIG)


def whole(model: CausalLM, ids: Tensor, fast: FastWeights) -> tuple[Tensor, list[Tensor]]:
    """Compute loss and gradient of a step, branches included, from one graph."""
    [step] = step_losses([step_inputs(model, ids, fast)])
    step.total.backward()
    return step.total.detach(), gradient_of(fast)


def in_pieces(model: CausalLM, ids: Tensor, fast: FastWeights) -> tuple[Tensor, list[Tensor], int]:
    """Compute the same from a tape; and how many pieces the backward pass had."""
    tape = Tape()
    [step] = run_pieces(losses_in_pieces([step_inputs(model, ids, fast)], tape))
    step.total.backward()
    pieces = sum(1 for _ in tape.backward())
    return step.total.detach(), gradient_of(fast), pieces


def gradient_of(fast: FastWeights) -> list[Tensor]:
    gradient = [t.grad for t in fast.parameters() if t.grad is not None]
    for tensor in fast.parameters():
        tensor.grad = None
    return gradient


def test_activations_are_measured_once(
    families: Families, tokens: Tokens, perturbed: Perturbed, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured: list[int] = []

    def measure(*args: Any) -> float:
        measured.append(1)
        return activation_bytes(*args)

    monkeypatch.setattr(segments, "activation_bytes", measure)
    model, ids = families["delta_net"](torch.float64), tokens(1, 140)
    model.activation_budget = 2**40
    for _ in range(3):
        in_pieces(model, ids, perturbed(model))
    assert len(measured) == 1
    other = model.new_fast_weights("low_rank", 3, 0)  # other fast weights keep other tensors
    in_pieces(model, ids, other.requires_grad_())
    assert len(measured) == 2


@pytest.mark.parametrize("dtype", TOLERANCE, ids=["fp64", "fp32"])
@pytest.mark.parametrize("budget", [None, 1], ids=["kept", "recomputed"])
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("length", [129, 333])
def test_gradient_of_segments_is_that_of_the_whole(
    families: Families,
    family: str,
    dtype: torch.dtype,
    budget: int | None,
    tokens: Tokens,
    perturbed: Perturbed,
    length: int,
) -> None:
    """Segments are one kernel chunk long; states are passed on, and every segment has branches."""
    model, ids = families[family](dtype), tokens(1, length)
    fast = perturbed(model)
    loss, expected = whole(model, ids, fast)
    model.activation_budget, model.pace = budget, FixedPace(64)
    again, gradient, pieces = in_pieces(model, ids, fast)
    count = -(-length // 64) if model.joins_segments else 1
    assert pieces > 2 * count  # those of the layers, and those of the head
    assert abs(again - loss) <= TOLERANCE[dtype] * abs(loss)
    error = sum((a - b).square().sum() for a, b in zip(gradient, expected, strict=True))
    assert (error / sum(g.square().sum() for g in expected)).sqrt() <= TOLERANCE[dtype]


@pytest.mark.parametrize("targets", ["all", "fast_weights"])
@pytest.mark.parametrize("family", ["delta_net", "overlay"])
def test_segments_have_the_gradient_of_everything_that_a_request_may_own(
    families: Families, family: str, targets: str, tokens: Tokens
) -> None:
    """Embedding, head and norms among them; initial memories belong to the first segment."""
    model, ids = families[family](torch.float64), tokens(1, 150)
    fast = model.new_fast_weights(targets, 4, 0).requires_grad_()
    _, expected = whole(model, ids, fast)
    model.pace = FixedPace(64)
    _, gradient, _ = in_pieces(model, ids, fast)
    for a, b in zip(gradient, expected, strict=True):
        torch.testing.assert_close(a, b, atol=1e-10, rtol=1e-9)


@pytest.mark.parametrize("family", ["delta_net", "overlay"])
def test_requests_are_read_in_segments_side_by_side(
    families: Families, family: str, tokens: Tokens, perturbed: Perturbed
) -> None:
    model, ids = families[family](torch.float64), tokens(2, 200)
    fast = perturbed(model).stack([perturbed(model, seed=s) for s in (1, 2)]).requires_grad_()
    hidden = model.trunk(model.freeze(ids, fast), fast).hidden
    model.pace = FixedPace(128)
    frozen = model.freeze(ids, fast)
    trunk = run_pieces(trunk_in_pieces(model, frozen, fast, None, Graph()))
    torch.testing.assert_close(trunk.hidden, hidden)
    state = trunk.state_at(torch.tensor([[70], [70]]))
    after = model(ids[:, 70:71], state, fast).hidden
    torch.testing.assert_close(after[:, 0], hidden[:, 70])


@pytest.mark.parametrize("family", FAMILIES)
def test_branches_start_anywhere_in_a_segment(
    families: Families, family: str, tokens: Tokens, perturbed: Perturbed
) -> None:
    """Before, at and behind the end of a segment, in any order, and after the last token."""
    model, ids = families[family](torch.float64), tokens(1, 200)
    fast = perturbed(model).requires_grad_()
    frozen = model.freeze(ids, fast)
    whole = model.trunk(frozen, fast)
    model.pace = FixedPace(64)
    trunk = run_pieces(trunk_in_pieces(model, frozen, fast, None, Graph()))
    positions = torch.tensor([[65, 200, 1, 64, 63, 128]])
    new = tokens(1, 1, seed=5).expand(positions.shape[1], 1)
    expected = model(new, whole.state_at(positions), fast).hidden
    torch.testing.assert_close(model(new, trunk.state_at(positions), fast).hidden, expected)


def peak_of_a_step(model: CausalLM, ids: Tensor, fast: FastWeights) -> int:
    """Measure the bytes of a step at its peak, forward and backward, beside what lasts longer."""
    inputs, tape = step_inputs(model, ids, fast), Tape()
    assert inputs.ntp_rows.frozen is not None  # lasts longer than a step
    with LiveBytes(model.parameters()) as live:
        [step] = run_pieces(losses_in_pieces([inputs], tape))
        step.total.backward()
        run_pieces(tape.backward())
    gradient_of(fast)
    peak: int = live.peak
    return peak


@pytest.mark.parametrize("family", sorted(FAMILIES.keys() - {"lact"}))
def test_recomputed_segments_take_less_memory_than_one_reading(
    families: Families, family: str, tokens: Tokens, perturbed: Perturbed
) -> None:
    model, ids = families[family](torch.float32), tokens(1, 320)
    fast = perturbed(model, "low_rank").requires_grad_()
    model.pace = FixedPace(1000)
    whole = peak_of_a_step(model, ids, fast)
    model.activation_budget, model.pace = 1, FixedPace(64)
    peak_of_a_step(model, ids, fast)  # some tables are made once
    assert peak_of_a_step(model, ids, fast) < 0.9 * whole


@pytest.mark.parametrize("family", ["delta_net", "toy"])
def test_segments_that_are_kept_take_no_more_memory_than_one_reading(
    families: Families, family: str, tokens: Tokens, perturbed: Perturbed
) -> None:
    """Softmax attention reads the keys of all segments as one tensor, which is a second copy."""
    model, ids = families[family](torch.float32), tokens(1, 640)
    fast = perturbed(model, "low_rank").requires_grad_()
    peak_of_a_step(model, ids, fast)  # some tables are made once
    model.pace = FixedPace(1000)
    whole = peak_of_a_step(model, ids, fast)
    model.pace = FixedPace(128)
    assert peak_of_a_step(model, ids, fast) <= whole


def test_a_budget_bounds_what_is_kept(
    families: Families, tokens: Tokens, perturbed: Perturbed
) -> None:
    """Traces, from which branches start, are kept in any case: half of what is counted here."""
    model, ids = families["delta_net"](torch.float32), tokens(1, 640)
    fast = perturbed(model).requires_grad_()
    frozen = model.freeze(ids, fast)
    model.pace = FixedPace(64)
    kept = {}
    for budget in (0, 1):
        model.activation_budget, tape = budget or None, Tape()
        with LiveBytes(model.parameters()) as live:
            trunk = run_pieces(trunk_in_pieces(model, frozen, fast, None, tape))
            kept[budget] = live.alive
        assert trunk.hidden.requires_grad
        del trunk, tape
    assert kept[1] < 0.75 * kept[0]


def test_measuring_activations_leaves_nothing_behind(
    families: Families, tokens: Tokens, perturbed: Perturbed
) -> None:
    model = families["delta_net"](torch.float32)
    fast = perturbed(model)
    frozen = model.freeze(tokens(1, 640), fast)
    activation_bytes(model, frozen, fast)  # some tables are made once
    with LiveBytes(model.parameters()) as live:
        activation_bytes(model, frozen, fast)
        after_one = live.alive
        activation_bytes(model, frozen, fast)
        assert live.alive == after_one < live.peak


def test_activations_are_measured_by_the_token(
    families: Families, tokens: Tokens, perturbed: Perturbed
) -> None:
    model = families["delta_net"](torch.float32)
    fast = perturbed(model)
    bytes_a_token = activation_bytes(model, model.freeze(tokens(1, 640), fast), fast)
    width, layers = model.config.hidden_size, model.num_layers
    assert 10 < bytes_a_token / (4 * width * layers) < 100
