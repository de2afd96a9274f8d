"""One projection for all rows, to which the LoRA of all requests are added in place.

The tensors that are only ``rank`` wide are computed rank-major, as [R, rank, n]: where the result
or the inner dimension of a product is only a few numbers wide, BLAS takes three to nine times as
long for the transposed product.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable


def batched_low_rank(
    x: Tensor, weight: Tensor, a: Tensor, b: Tensor, bias: Tensor | None = None
) -> Tensor:
    """Compute ``naive.batched_low_rank`` in batched products; same arguments, same results."""
    apply: Callable[..., Tensor] = _BatchedLowRank.apply
    y = apply(x.reshape(a.shape[0], -1, x.shape[-1]), weight, a, b, bias)
    return y.view(*x.shape[:-1], -1)


class _BatchedLowRank(torch.autograd.Function):
    """The projection of x [R, n, in] to [R, n, out], with its backward pass."""

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
    """Return (x A)^T, [R, rank, n]; A transposed in memory makes it fast, with least rounding."""
    return (x @ a.mT.contiguous().mT).mT
