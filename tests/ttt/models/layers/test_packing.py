"""Weights side by side, and a few tokens through a layer: the same values, the same results."""

import pytest
import torch
from torch import nn

from refine_server.ttt.models.hf.fast_decode import FEW
from refine_server.ttt.models.layers.packing import join
from refine_server.ttt.models.loading.loader import wrap
from refine_server.ttt.models.state import KVState

TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5}
DTYPES = pytest.mark.parametrize("dtype", TOLERANCE, ids=["fp64", "fp32"])


def test_joined_weights_are_the_modules_own_and_kept_once() -> None:
    modules = [nn.Linear(6, out, bias=False) for out in (4, 3)]
    before = [m.weight.detach().clone() for m in modules]
    joined = join(modules)
    assert joined is not None
    assert torch.equal(joined, torch.cat(before))
    for module, values in zip(modules, before, strict=True):
        assert torch.equal(module.weight, values)
        assert module.weight.untyped_storage().data_ptr() == joined.untyped_storage().data_ptr()


@pytest.mark.parametrize(
    "odd",
    [
        nn.Linear(6, 3, bias=True),
        nn.Linear(6, 3, bias=False).double(),
        nn.Linear(6, 3, bias=False, device="meta"),
        nn.Linear(6, 3, bias=False).bfloat16(),
    ],
    ids=["bias", "another type", "elsewhere", "half precision"],
)
def test_what_does_not_go_together_is_left_as_it_is(odd: nn.Linear) -> None:
    plain, weight = nn.Linear(6, 3, bias=False), odd.weight
    strides = plain.weight.stride(), weight.stride()
    assert join([plain, odd]) is None
    assert (plain.weight.stride(), odd.weight.stride()) == strides


def test_the_layout_changes_no_weight(make_transformers) -> None:
    theirs = make_transformers("llama", tie_word_embeddings=True)
    before = {n: p.detach().clone() for n, p in theirs.named_parameters()}
    model = wrap(theirs)
    assert all(torch.equal(p, before[n]) for n, p in model.named_parameters())
    assert model.tied


def test_a_cast_model_reads_with_its_new_weights(make_transformers, tokens) -> None:
    ids = tokens(1, 9)
    model = wrap(make_transformers("llama"))
    assert model(ids).logits.dtype == torch.float32
    cast, made = model.double(), wrap(make_transformers("llama").double())
    torch.testing.assert_close(cast(ids).logits, made(ids).logits)


@DTYPES
@pytest.mark.parametrize("name", ["overlay", "window"])
def test_a_few_tokens_equal_the_general_layer(families, dtype, tokens, name) -> None:
    """With gradients enabled every layer takes the general way."""
    model, ids = families[name](dtype), tokens(1, 31)
    assert any(layer is not None for layer in model.token_layers) == (name == "overlay")
    state = model(ids).state
    general, short = state, state
    for T in (1, 1, 3, FEW, 1, 2, FEW + 1):
        few = tokens(1, T, seed=T)
        expected = model(few, general)
        with torch.no_grad():
            output = model(few, short)
        general, short = expected.state, output.state
        torch.testing.assert_close(
            output.hidden, expected.hidden, atol=TOLERANCE[dtype], rtol=TOLERANCE[dtype]
        )
    assert short.position.tolist() == general.position.tolist() == [56]


@pytest.mark.parametrize("T", [1, 4])
@pytest.mark.parametrize("targets", ["fast_weights", "low_rank", "all"])
def test_a_few_tokens_from_the_middle_of_a_document_under_fast_weights(
    families, tokens, perturbed, targets, T
) -> None:
    model, ids = families["overlay"](torch.float64), tokens(1, 31)
    fast = perturbed(model, targets)
    with torch.no_grad():
        trunk = model.trunk(model.freeze(ids, fast), fast)
        state = trunk.state_at(torch.tensor([[17]]))
        assert isinstance(state.layers[0], KVState)
        hidden = model(ids[:, 17 : 17 + T], state, fast).hidden
    torch.testing.assert_close(hidden, trunk.hidden[:, 17 : 17 + T])
