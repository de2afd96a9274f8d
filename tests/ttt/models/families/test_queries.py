"""Deltas of the queries alone: what they change, and that states know nothing of them."""

from collections.abc import Callable, Sequence
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from refine_server.kernels import dispatch
from refine_server.ttt.fast_weights import BASE, FastWeights
from refine_server.ttt.models import CausalLM
from refine_server.ttt.models.families.lact.state import LaCTState
from refine_server.ttt.models.state import DeltaState, KVState, LayerState, State
from support.small_models import Families, Perturbed, Tokens

CLOSE = {"atol": 1e-10, "rtol": 1e-10}
LENGTHS = pytest.mark.parametrize("length", [1, 13, 67])
WITH_ATTENTION = ["overlay", "gemma3", "qwen3_next", "olmo_hybrid", "kimi_linear"]
JOINT_PROJECTIONS = ("qkv", "in_proj_qkv", "in_proj_qkvz")
"""Projections whose first rows make queries: the first of all, or of every head."""


def weights_of(model: CausalLM, fast: FastWeights) -> FastWeights:
    """Whole projections W + B A instead of their LoRA, in the graph of A and B."""
    tensors = {}
    for name in (n.removesuffix(".lora_a") for n in fast if n.endswith(".lora_a")):
        delta = (fast[f"{name}.lora_a"][0] @ fast[f"{name}.lora_b"][0]).T  # [out, in]
        parent, _, part = name.rpartition(".")
        if part == "query":
            attn = model.get_submodule(parent)
            part = next(p for p in JOINT_PROJECTIONS if hasattr(attn, p))
            groups = attn.num_k_heads if part == "in_proj_qkvz" else 1
            weight = model.get_parameter(f"{parent}.{part}.weight")
            delta = delta.view(groups, -1, delta.shape[1])
            missing = weight.shape[0] // groups - delta.shape[1]
            delta = F.pad(delta, (0, 0, 0, missing)).flatten(0, 1)
        name = f"{parent}.{part}.weight"
        tensors[name] = (model.get_parameter(name) + delta)[None]
    return FastWeights(tensors)


def written(layer: LayerState, query_width: int) -> list[Tensor]:
    """What a layer's state holds for later tokens: keys, values, memories, what writes need."""
    if isinstance(layer, KVState):
        return [layer.k, layer.v]
    if isinstance(layer, DeltaState):  # queries, too, have a convolution with a past
        return [layer.memory, *([] if layer.conv is None else [layer.conv[..., query_width:]])]
    if isinstance(layer, LaCTState):
        return [layer.window.k, layer.window.v, *layer.memory.weights, *layer.pending.tail]
    return [layer.mean]  # of the toy family


def test_there_is_one_delta_a_layer(model: CausalLM) -> None:
    """So the size depends on the model and the rank alone."""
    fast = model.new_fast_weights("queries", 4, 0)
    assert fast.is_lora
    layers = [int(name.split(".")[2]) for name in fast]  # model.layers.<i>.
    assert layers == sorted([*range(model.num_layers)] * 2)
    assert {t.shape[2 if n.endswith("a") else 1] for n, t in fast.tensors.items()} == {4}


@LENGTHS
def test_they_equal_changed_projections(
    model: CausalLM, tokens: Tokens, perturbed: Perturbed, length: int
) -> None:
    """From the same state: hidden states, and the gradients of the deltas.

    And the base model reads that state, bit by bit, as before.
    """
    fast = perturbed(model, "queries").requires_grad_()
    state, ids = model(tokens(2, 71)).state, tokens(2, length, seed=2)
    base = model(ids, state).hidden
    ours = model(ids, state, fast).hidden
    expected = model(ids, state, weights_of(model, fast)).hidden
    assert (ours - base).abs().max() > 1e-4
    torch.testing.assert_close(ours, expected, **CLOSE)
    direction = torch.randn(ours.shape, generator=torch.Generator().manual_seed(0)).double()
    gradients = [
        torch.autograd.grad((h * direction).sum(), fast.parameters(), allow_unused=True)
        for h in (ours, expected)
    ]
    for own, other in zip(*gradients, strict=True):
        torch.testing.assert_close(own, other, **CLOSE)
    assert torch.equal(model(ids, state).hidden, base)


@LENGTHS
def test_what_the_first_layer_writes_does_not_depend_on_them(
    model: CausalLM, tokens: Tokens, perturbed: Perturbed, length: int
) -> None:
    """Above it tokens differ, because what was read below does."""
    fast = perturbed(model, "queries")
    width = next(t.shape[2] for n, t in fast.tensors.items() if n.endswith("lora_b"))
    state, ids = model(tokens(1, 71)).state, tokens(1, length, seed=2)
    changed, base = (model(ids, state, own).state.layers[0] for own in (fast, BASE))
    for own, other in zip(written(changed, width), written(base, width), strict=True):
        torch.testing.assert_close(own, other, **CLOSE)


@pytest.mark.parametrize("name", WITH_ATTENTION)
@pytest.mark.parametrize("length", [1, 7])
def test_attention_to_a_state_is_that_of_the_forward(
    families: Families,
    tokens: Tokens,
    perturbed: Perturbed,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    length: int,
) -> None:
    """Weights and gradients, for rows that see different parts of one prefix, with a tail."""
    model = families[name](torch.float64)
    fast = perturbed(model, "queries").requires_grad_()
    trunk = model.trunk(model.freeze(tokens(1, 41), BASE), BASE)
    state = model(tokens(2, 3, seed=3), trunk.state_at(torch.tensor([[40, 17]]))).state
    ids = tokens(2, length, seed=2)

    expected = naive_weights(model, ids, state, fast, monkeypatch)
    ours = model.attention_to_prefix(ids, state, fast, model.attention_layers)
    for own, other in zip(ours, expected, strict=True):
        torch.testing.assert_close(own, other, **CLOSE)
    gradients = [
        torch.autograd.grad(
            sum(w.square().sum() for w in weights), fast.parameters(), allow_unused=True
        )
        for weights in (ours, expected)
    ]
    for own, other in zip(*gradients, strict=True):
        torch.testing.assert_close(own, other, **CLOSE)


def naive_weights(
    model: CausalLM, ids: Tensor, state: State, fast: FastWeights, patch: pytest.MonkeyPatch
) -> list[Tensor]:
    """Softmax over the queries and keys that a whole forward gives to the attention, by layer."""
    seen: list[tuple[Tensor, Tensor, dict[str, Tensor]]] = []

    def recorded(
        op: Callable[..., Tensor], q: Tensor, k: Tensor, v: Tensor, **kw: Tensor
    ) -> Tensor:
        seen.append((q, k, kw))
        return op(q, k, v, **kw)

    with patch.context() as patched:
        patched.setattr(dispatch, "attention", partial(recorded, dispatch.attention))
        model(ids, state, fast)
    attention = [i for i, layer in enumerate(state.layers) if isinstance(layer, KVState)]
    by_layer = dict(zip(attention, seen, strict=True))
    return [naive_softmax(*by_layer[index], ids.shape[1]) for index in model.attention_layers]


def naive_softmax(q: Tensor, k: Tensor, kw: dict[str, Tensor], T: int) -> Tensor:
    """Row by row, the last query's weights of prefix and tail without the T new tokens."""
    P, rows = kw["prefix_k"].shape[2], []
    for b, length in enumerate(kw["prefix_length"].tolist()):
        keys = torch.cat([kw["prefix_k"][0, :, :length], k[b]], dim=1)  # [H, S, D]
        keys = keys.repeat_interleave(q.shape[1] // keys.shape[0], dim=0)
        weights = (keys @ q[b, :, -1, :, None] * kw["scale"])[..., 0].softmax(-1)  # [Hq, S]
        of_prefix, of_tail = weights[:, :length], weights[:, length:-T]
        rows.append(torch.cat([F.pad(of_prefix, (0, P - length)), of_tail], dim=1))
    return torch.stack(rows)


@pytest.mark.parametrize("name", ["delta_net", "gated_delta_net", "lact", "window"])
def test_attention_to_a_state_is_refused_without_full_attention(
    families: Families, tokens: Tokens, name: str
) -> None:
    model = families[name](torch.float64)
    assert model.attention_layers == ()
    state = model(tokens(1, 9)).state
    with pytest.raises(TypeError, match="no softmax attention to all tokens"):
        model.attention_to_prefix(tokens(1, 2), state, BASE, (0,))


def test_layers_with_full_attention(families: Families) -> None:
    layers: dict[str, Sequence[int]] = {
        name: families[name](torch.float64).attention_layers for name in WITH_ATTENTION
    }
    assert layers == {
        "overlay": (0, 1, 2, 3),
        "gemma3": (3,),
        "qwen3_next": (3,),
        "olmo_hybrid": (3,),
        "kimi_linear": (1, 3),
    }
