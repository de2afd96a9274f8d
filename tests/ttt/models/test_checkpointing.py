"""Reading in segments gives the gradient of a single reading, with less memory."""

import pytest
import torch
from torch import Tensor

from refine_server.ttt.fast_weights import FastWeights
from refine_server.ttt.interface.config import AdaptConfig, RolloutConfig
from refine_server.ttt.models import CausalLM
from refine_server.ttt.models.checkpointing import activation_bytes, run_checkpointed
from refine_server.ttt.refine.inputs.rows import Rows
from refine_server.ttt.refine.inputs.step_inputs import StepInputs
from refine_server.ttt.refine.loss import step_losses
from support.small_models import Families, Perturbed, Tokens

TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5}
CONFIG = AdaptConfig(
    rollouts=RolloutConfig(positions=4, per_position=2, reward="hybrid"), guard="none"
)


def loss_and_gradient(
    model: CausalLM, ids: Tensor, fast: FastWeights
) -> tuple[Tensor, list[Tensor]]:
    """Compute loss and gradient of a whole step, branches included."""
    rows = Rows(model, ids, fast, positions=CONFIG.rollouts.positions)
    [step] = step_losses([StepInputs.of(rows, fast, CONFIG)])
    loss = step.total
    names = list(fast)
    gradient = torch.autograd.grad(loss, [fast[n] for n in names], allow_unused=True)
    return loss.detach(), [g for g in gradient if g is not None]


@pytest.mark.parametrize("dtype", TOLERANCE, ids=["fp64", "fp32"])
@pytest.mark.parametrize(
    "family", ["delta_net", "gated_delta_net", "overlay", "window", "gemma3", "qwen3_next", "toy"]
)
@pytest.mark.parametrize("length", [129, 333])
def test_gradient_of_segments_is_that_of_the_whole(
    families: Families,
    family: str,
    dtype: torch.dtype,
    tokens: Tokens,
    perturbed: Perturbed,
    length: int,
) -> None:
    """Segments are one kernel chunk long; states are passed on, and every segment has branches."""
    model, ids = families[family](dtype), tokens(1, length)
    fast = perturbed(model)
    loss, whole = loss_and_gradient(model, ids, fast)
    model.activation_budget = 1
    again, segments = loss_and_gradient(model, ids, fast)
    assert abs(again - loss) <= TOLERANCE[dtype] * abs(loss)
    error = sum((a - b).square().sum() for a, b in zip(segments, whole, strict=True))
    assert (error / sum(g.square().sum() for g in whole)).sqrt() <= TOLERANCE[dtype]


@pytest.mark.parametrize("family", ["delta_net", "overlay"])
def test_requests_are_read_in_segments_side_by_side(
    families: Families, family: str, tokens: Tokens, perturbed: Perturbed
) -> None:
    model, ids = families[family](torch.float64), tokens(2, 200)
    fast = perturbed(model).stack([perturbed(model, seed=s) for s in (1, 2)]).requires_grad_()
    hidden = model.trunk(model.freeze(ids, fast), fast).hidden
    model.activation_budget = 1
    trunk = model.trunk(model.freeze(ids, fast), fast)
    torch.testing.assert_close(trunk.hidden, hidden)
    state = trunk.state_at(torch.tensor([[70], [70]]))
    after = model(ids[:, 70:71], state, fast).hidden
    torch.testing.assert_close(after[:, 0], hidden[:, 70])


@pytest.mark.parametrize("family", ["delta_net", "overlay"])
def test_a_budget_bounds_what_the_graph_keeps(
    families: Families, family: str, tokens: Tokens, perturbed: Perturbed
) -> None:
    model, ids = families[family](torch.float32), tokens(1, 640)
    fast = perturbed(model).requires_grad_()
    frozen = model.freeze(ids, fast)
    first, start = frozen.first_layer, torch.zeros(1, dtype=torch.int64)
    states = [None] * (model.num_layers - first)
    kept = {}
    for budget in (None, 1):
        model.activation_budget, found = budget, {}

        def note(tensor: Tensor, found: dict[int, int] = found) -> Tensor:
            found[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            hidden, _ = run_checkpointed(model, frozen.hidden, states, start, fast, first)
        found.pop(frozen.hidden.untyped_storage().data_ptr(), None)  # exists in any case
        kept[budget] = sum(found.values())
        assert hidden.requires_grad
    assert kept[1] < kept[None] / 4


def test_activations_are_measured_by_the_token(
    families: Families, tokens: Tokens, perturbed: Perturbed
) -> None:
    model = families["delta_net"](torch.float32)
    fast = perturbed(model)
    x = torch.randn(1, 640, model.config.hidden_size, requires_grad=True)
    bytes_a_token = activation_bytes(model, x, fast, 0)
    width, layers = model.config.hidden_size, model.num_layers
    assert 10 < bytes_a_token / (4 * width * layers) < 100
