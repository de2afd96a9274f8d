"""Projection for all rows at once, low-rank deltas for all requests added to it in place.

What is only ``rank`` wide is made rank-major, [R, rank, n]: a product whose result or whose inner
dimension is a few numbers wide takes BLAS three to nine times as long the other way round.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from refine_server.kernels.batched_low_rank.naive import split


def batched_low_rank(
    x: Tensor,
    weight: Tensor,
    a: Tensor,
    b: Tensor,
    bias: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
) -> Tensor:
    """See ``naive.batched_low_rank``: same arguments, same results."""
    if cu_seqlens is None:
        apply: Callable[..., Tensor] = _EqualRows.apply
        y = apply(x.reshape(a.shape[0], -1, x.shape[-1]), weight, a, b, bias)
        return y.view(*x.shape[:-1], -1)
    rows = split(x.reshape(-1, x.shape[-1]), a, cu_seqlens)
    delta = torch.cat([r @ a_r @ b_r for r, a_r, b_r in zip(rows, a, b, strict=True)])
    y = F.linear(x, weight, bias)
    return y + delta.view(y.shape)


class _EqualRows(torch.autograd.Function):
    """x [R, n, in] -> [R, n, out], every request with n rows."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, a: Tensor, b: Tensor, bias: Tensor | None
    ) -> Tensor:
        low = _low(x, a)
        ctx.save_for_backward(x, weight, a, b, low)
        return F.linear(x, weight, bias).baddbmm_(low.mT, b)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, a, b, low = ctx.saved_tensors
        of_x, of_weight, _, _, of_bias = ctx.needs_input_grad
        grad_low = b @ grad.mT  # [R, rank, n]
        return (
            (grad @ weight).baddbmm_(grad_low.mT, a.mT) if of_x else None,
            grad.flatten(0, 1).mT @ x.flatten(0, 1) if of_weight else None,
            (grad_low @ x).mT,
            low @ grad,
            grad.sum((0, 1)) if of_bias else None,
        )


def _low(x: Tensor, a: Tensor) -> Tensor:
    """(x A)^T: [R, rank, n]; with A transposed in memory it is fast and rounds least."""
    return (x @ a.mT.contiguous().mT).mT
