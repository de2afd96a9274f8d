"""A few tokens of a Llama go through the ops of the dispatcher, so REFINE_KERNELS reaches them."""

from collections import Counter
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor

from refine_server.kernels import dispatch


@pytest.mark.parametrize("T", [1, 3])
@torch.no_grad()
def test_norms_and_attention_are_the_dispatchers(
    families: dict[str, Callable[..., torch.nn.Module]],
    tokens: Callable[..., Tensor],
    monkeypatch: pytest.MonkeyPatch,
    T: int,
) -> None:
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
