"""LaCT's memory in Triton: reads, writes, and gradients through both."""

from collections.abc import Callable

import pytest
import torch

pytest.importorskip("triton")

from refine_server.kernels.lact_swiglu import naive
from refine_server.kernels.lact_swiglu import triton_impl as form

pytestmark = pytest.mark.usefixtures("nan_scratch")


def memory(rows: int, H: int, D: int, F: int) -> list[torch.Tensor]:
    return [torch.randn(rows, H, *s) * s[1] ** -0.5 for s in ((F, D), (D, F), (F, D))]


@pytest.mark.parametrize(
    ("rows", "memories", "T", "D", "F"),
    [(1, 1, 1, 8, 8), (6, 2, 7, 33, 20), (2, 2, 63, 100, 65), (1, 1, 130, 16, 72), (3, 3, 0, 8, 8)],
)
def test_apply(
    rows: int,
    memories: int,
    T: int,
    D: int,
    F: int,
    dtype: torch.dtype,
    matches: Callable[..., None],
) -> None:
    q = torch.randn(rows, 2, T, D).to(dtype)
    matches(naive.lact_apply, form.lact_apply, [q, *memory(memories, 2, D, F)], scale=2)


@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize(("T", "D", "F"), [(1, 24, 16), (63, 40, 65), (100, 20, 16)])
def test_gradient(
    T: int, D: int, F: int, per_channel: bool, dtype: torch.dtype, matches: Callable[..., None]
) -> None:
    widths = (D, F, D) if per_channel else (1, 1, 1)
    rates = [torch.rand(2, 2, T, width) for width in widths]
    k, v = (torch.randn(2, 2, T, D).to(dtype) for _ in "kv")
    inputs = [k, v, *rates, *memory(2, 2, D, F)]
    matches(naive.lact_gradient, form.lact_gradient, inputs, scale=3, rounded=True)


def test_memories_do_not_mix() -> None:
    k, v = (torch.randn(3, 2, 20, 8) for _ in "kv")
    rate, weights = torch.rand(3, 2, 20, 1), memory(3, 2, 8, 8)

    def results() -> list[torch.Tensor]:
        own = [w.clone().requires_grad_() for w in weights]
        steps = form.lact_gradient(k, v, rate, rate, rate, *own)
        o = form.lact_apply(k, *own)
        total = o.sum() + sum(s.sum() for s in steps)
        return [o, *steps, *torch.autograd.grad(total, own)]

    clean = results()
    weights[0][1] = float("nan")
    for a, b in zip(clean, results(), strict=True):
        assert torch.equal(a[[0, 2]], b[[0, 2]])
        assert b[1].isnan().any()
