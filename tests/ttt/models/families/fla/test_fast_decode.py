"""The fast decode path computes what the general layers do, states included."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from refine_server.ttt.fast_weights import BASE, FastWeights
from refine_server.ttt.models import CausalLM, build
from refine_server.ttt.models.base import Output
from refine_server.ttt.models.families.fla.delta_net import DeltaNet, DeltaNetConfig
from refine_server.ttt.models.families.fla.fast_decode import FastLayer
from refine_server.ttt.models.state import DeltaState, State
from support.small_models import LoadGolden, Perturbed, Tokens

TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-4}  # as of the forward's other tests
DTYPES = pytest.mark.parametrize("dtype", TOLERANCE, ids=["fp64", "fp32"])
GOLDEN = [
    *("delta_net", "delta_net_gate", "delta_net_no_conv"),
    *("gated_delta_net", "gated_delta_net_groups", "gated_delta_net_plain"),
]
Make = Callable[[str, torch.dtype], CausalLM]


@pytest.fixture
def make(load_golden: LoadGolden) -> Make:
    """A model by the name of its golden file; "constant beta" has no write strengths."""

    def of(name: str, dtype: torch.dtype) -> CausalLM:
        if name != "constant beta":
            return load_golden(name).model(dtype)
        golden = load_golden("delta_net")
        weights = {n: w.to(dtype) for n, w in golden.under("weights.").items()}
        return build(
            golden.config | {"use_beta": False, "allow_neg_eigval": True},
            {n: w for n, w in weights.items() if "b_proj" not in n},
        )

    return of


def general(model: CausalLM, ids: Tensor, state: State | None, fast: FastWeights) -> Output:
    """Run the general layers, which a model uses when gradients are enabled."""
    with torch.enable_grad():
        return model(ids, state, fast)


def fast_path(model: CausalLM, ids: Tensor, state: State | None, fast: FastWeights) -> Output:
    with torch.no_grad():
        return model(ids, state, fast)


def assert_same(ours: Output, expected: Output, dtype: torch.dtype) -> None:
    close = {"atol": TOLERANCE[dtype], "rtol": TOLERANCE[dtype]}
    torch.testing.assert_close(ours.hidden, expected.hidden, **close)
    assert torch.equal(ours.state.position, expected.state.position)
    for own, other in zip(ours.state.layers, expected.state.layers, strict=True):
        assert isinstance(own, DeltaState)
        torch.testing.assert_close(own.memory, other.memory, **close)
        assert (own.conv is None) == (other.conv is None)
        if own.conv is not None:
            torch.testing.assert_close(own.conv, other.conv, **close)


@DTYPES
@pytest.mark.parametrize("targets", [None, "low_rank", "queries", "fast_weights"])
@pytest.mark.parametrize("name", [*GOLDEN, "constant beta"])
def test_tokens_equal_the_general_layers(
    make: Make,
    name: str,
    targets: str | None,
    dtype: torch.dtype,
    tokens: Tokens,
    perturbed: Perturbed,
) -> None:
    model = make(name, dtype)
    assert model.fast_layers is not None
    fast = BASE if targets is None else perturbed(model, targets)
    state = general(model, tokens(2, 31), None, fast).state.detach()
    for seed, T in enumerate((1, 2, 13, 1, 64, 65, 1)):
        ids = tokens(2, T, seed=seed)
        expected, ours = general(model, ids, state, fast), fast_path(model, ids, state, fast)
        assert_same(ours, expected, dtype)
        state = ours.state


@DTYPES
@pytest.mark.parametrize("name", ["delta_net", "gated_delta_net_groups"])
@pytest.mark.parametrize("T", [1, 9])
def test_rows_of_several_requests_equal_the_general_layers(
    make: Make, name: str, T: int, dtype: torch.dtype, tokens: Tokens, perturbed: Perturbed
) -> None:
    model = make(name, dtype)
    fast = FastWeights.stack([perturbed(model, "low_rank", seed) for seed in range(3)])
    state = general(model, tokens(6, 20), None, fast).state.detach()
    ids = tokens(6, T, seed=2)
    assert_same(fast_path(model, ids, state, fast), general(model, ids, state, fast), dtype)


@pytest.mark.parametrize("T", [1, 9])
def test_a_state_stays_as_it_is(make: Make, T: int, tokens: Tokens, perturbed: Perturbed) -> None:
    model = make("gated_delta_net", torch.float64)
    fast = perturbed(model, "low_rank")
    state = fast_path(model, tokens(1, 20), None, fast).state
    before = [(layer.memory.clone(), layer.conv.clone()) for layer in state.layers]
    first = fast_path(model, tokens(1, T), state, fast)
    again = fast_path(model, tokens(1, T), state, fast)
    assert torch.equal(first.hidden, again.hidden)
    for layer, (memory, conv) in zip(state.layers, before, strict=True):
        assert torch.equal(layer.memory, memory)
        assert torch.equal(layer.conv, conv)


def test_unsupported_cases_take_the_general_layers(
    make: Make, tokens: Tokens, perturbed: Perturbed, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, ids = make("delta_net", torch.float64), tokens(1, 3)

    def refuse(*_: object) -> None:
        raise AssertionError("decoded fast")

    monkeypatch.setattr(FastLayer, "decode", refuse)
    state = fast_path(model, ids, None, BASE).state
    general(model, ids, state, BASE)
    full = perturbed(model, "all")
    output = fast_path(model, ids, state, full)
    assert torch.equal(output.hidden, general(model, ids, state, full).hidden)
    with pytest.raises(AssertionError, match="decoded fast"):
        fast_path(model, ids, state, BASE)


def test_half_precision_and_fresh_weights_are_not_packed(make: Make) -> None:
    assert make("delta_net", torch.bfloat16).fast_layers is None
    assert (
        DeltaNet(DeltaNetConfig(hidden_size=16, num_hidden_layers=1, vocab_size=8)).fast_layers
        is None
    )


def test_packing_changes_no_weight(load_golden: LoadGolden) -> None:
    golden = load_golden("gated_delta_net")
    model = golden.model()
    assert all(torch.equal(p, golden.tensors[f"weights.{n}"]) for n, p in model.named_parameters())


def test_changed_weights_are_read(make: Make, tokens: Tokens) -> None:
    """The fast path has no stale copies when weights are changed in place or cast."""
    model = make("delta_net", torch.float32)
    state = general(model, tokens(1, 20), None, BASE).state
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.1)
    assert_same(
        fast_path(model, tokens(1, 1), state, BASE),
        general(model, tokens(1, 1), state, BASE),
        torch.float32,
    )
    model = model.double()
    state = general(model, tokens(1, 20), None, BASE).state
    assert_same(
        fast_path(model, tokens(1, 1), state, BASE),
        general(model, tokens(1, 1), state, BASE),
        torch.float64,
    )
