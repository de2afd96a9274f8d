"""The fast decode path computes what the general layers do, by the ops of the dispatcher."""

from collections import Counter
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor

from refine_server.kernels import dispatch
from refine_server.ttt.models.families.hf.fast_decode import MAX_FAST_TOKENS
from refine_server.ttt.models.state import KVState
from support.small_models import Families, Perturbed, Tokens

TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5}
DTYPES = pytest.mark.parametrize("dtype", TOLERANCE, ids=["fp64", "fp32"])


@DTYPES
@pytest.mark.parametrize("name", ["overlay", "window"])
def test_a_few_tokens_equal_the_general_layers(
    families: Families, dtype: torch.dtype, tokens: Tokens, name: str
) -> None:
    """With gradients enabled every layer is computed by its block."""
    model, ids = families[name](dtype), tokens(1, 31)
    assert (model.fast_layers is not None) == (name == "overlay")
    state = model(ids).state
    general, short = state, state
    for T in (1, 1, 3, MAX_FAST_TOKENS, 1, 2, MAX_FAST_TOKENS + 1):
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
@pytest.mark.parametrize("targets", ["fast_weights", "low_rank", "queries", "all"])
def test_a_few_tokens_from_the_middle_of_a_document_under_fast_weights(
    families: Families, tokens: Tokens, perturbed: Perturbed, targets: str, T: int
) -> None:
    model, ids = families["overlay"](torch.float64), tokens(1, 31)
    fast = perturbed(model, targets)
    with torch.no_grad():
        trunk = model.trunk(model.freeze(ids, fast), fast)
        state = trunk.state_at(torch.tensor([[17]]))
        assert isinstance(state.layers[0], KVState)
        hidden = model(ids[:, 17 : 17 + T], state, fast).hidden
    torch.testing.assert_close(hidden, trunk.hidden[:, 17 : 17 + T])


@pytest.mark.parametrize("T", [1, 3])
@torch.no_grad()
def test_norms_and_attention_are_the_dispatchers(
    families: Families,
    tokens: Tokens,
    monkeypatch: pytest.MonkeyPatch,
    T: int,
) -> None:
    """REFINE_KERNELS reaches them."""
    model = families["overlay"](torch.float64)
    state = model(tokens(1, 31)).state
    calls: Counter[str] = Counter()

    def counted(op: str, chosen: Callable[..., Tensor], *args: object, **kwargs: object) -> Tensor:
        calls[op] += 1
        return chosen(*args, **kwargs)

    for op in ("rms_norm", "attention", "cascade_attention"):
        monkeypatch.setattr(dispatch, op, partial(counted, op, getattr(dispatch, op)))
    model(tokens(1, T, seed=1), state)
    assert calls == {"rms_norm": 2 * model.num_layers + 1, "cascade_attention": model.num_layers}
