"""Packed weights: the same values, kept once."""

import pytest
import torch
from torch import nn

from refine_server.ttt.models.layers.packing import pack
from refine_server.ttt.models.loading.loader import wrap
from support.small_models import MakeTransformers, Tokens


def test_packed_weights_are_the_modules_own_and_kept_once() -> None:
    modules = [nn.Linear(6, out, bias=False) for out in (4, 3)]
    before = [m.weight.detach().clone() for m in modules]
    packed = pack(modules)
    assert packed is not None
    assert torch.equal(packed, torch.cat(before))
    for module, values in zip(modules, before, strict=True):
        assert torch.equal(module.weight, values)
        assert module.weight.untyped_storage().data_ptr() == packed.untyped_storage().data_ptr()


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
def test_incompatible_layers_are_not_packed(odd: nn.Linear) -> None:
    plain, weight = nn.Linear(6, 3, bias=False), odd.weight
    strides = plain.weight.stride(), weight.stride()
    assert pack([plain, odd]) is None
    assert (plain.weight.stride(), odd.weight.stride()) == strides


def test_packing_changes_no_weight(make_transformers: MakeTransformers) -> None:
    theirs = make_transformers("llama", tie_word_embeddings=True)
    before = {n: p.detach().clone() for n, p in theirs.named_parameters()}
    model = wrap(theirs)
    assert all(torch.equal(p, before[n]) for n, p in model.named_parameters())
    assert model.tied


def test_a_cast_model_reads_with_its_new_weights(
    make_transformers: MakeTransformers, tokens: Tokens
) -> None:
    ids = tokens(1, 9)
    model = wrap(make_transformers("llama"))
    assert model(ids).logits.dtype == torch.float32
    cast, made = model.double(), wrap(make_transformers("llama").double())
    torch.testing.assert_close(cast(ids).logits, made(ids).logits)
