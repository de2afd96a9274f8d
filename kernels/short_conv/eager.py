"""Short causal convolution as W shifted multiply-adds, which add into one tensor in place.

conv1d with one group per channel is slow on a CPU, and its backward pass is slower still.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable


def short_conv(padded: Tensor, weight: Tensor) -> Tensor:
    """Compute ``naive.short_conv`` tap by tap; same arguments, same results."""
    apply: Callable[..., Tensor] = _ShortConv.apply
    return apply(padded, weight)


def short_conv_silu(padded: Tensor, weight: Tensor) -> Tensor:
    """Compute ``naive.short_conv_silu`` tap by tap; same arguments, same results."""
    return F.silu(short_conv(padded, weight))


class _ShortConv(torch.autograd.Function):
    """The convolution with its backward pass."""

    @staticmethod
    def forward(ctx: Any, padded: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(padded, weight)
        taps = _taps(weight)
        T = padded.shape[1] - len(taps) + 1
        y = padded[:, :T] * taps[0]
        for i, tap in enumerate(taps[1:], start=1):
            y.addcmul_(padded[:, i : i + T], tap)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor | None]:
        padded, weight = ctx.saved_tensors
        taps, T = _taps(weight), grad.shape[1]
        grad_padded = torch.empty_like(padded)
        torch.mul(grad, taps[0], out=grad_padded[:, :T])
        grad_padded[:, T:] = 0
        for i, tap in enumerate(taps[1:], start=1):
            grad_padded[:, i : i + T].addcmul_(grad, tap)
        if not ctx.needs_input_grad[1]:
            return grad_padded, None
        over = (0, 1) if weight.ndim == 2 else (1,)
        shares = [(grad * padded[:, i : i + T]).sum(over) for i in range(len(taps))]
        return grad_padded, torch.stack(shares, dim=-1)


def _taps(weight: Tensor) -> tuple[Tensor, ...]:
    """Return W taps, [C] each or [B, 1, C] when every row has its own; contiguous, for speed."""
    taps = weight.movedim(-1, 0).contiguous()
    return (taps if weight.ndim == 2 else taps[:, :, None]).unbind()
