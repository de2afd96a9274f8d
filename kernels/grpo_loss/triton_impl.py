"""Surrogate, KL and the derivatives of both in one launch.

d loss / d log_prob is [N, k] and as cheap as the loss, so the forward pass keeps it and the
backward pass is one multiplication. Its result goes straight into the backward kernels of
``token_stats``.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from refine_server.kernels.triton_support import check_dtype

BLOCK = 1024


def grpo_loss(
    log_prob: Tensor,
    old_log_prob: Tensor,
    advantages: Tensor,
    base_log_prob: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Compute ``naive.grpo_loss`` in one launch; same arguments, same results."""
    check_dtype(log_prob)
    surrogate, kl = _GrpoLoss.apply(log_prob, old_log_prob, advantages, base_log_prob)
    return surrogate, kl


class _GrpoLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        log_prob: Tensor,
        old_log_prob: Tensor,
        advantages: Tensor,
        base_log_prob: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        slopes = torch.empty(2, *log_prob.shape, device=log_prob.device)  # of surrogate and KL
        losses = torch.empty(2, device=log_prob.device)
        base = log_prob if base_log_prob is None else base_log_prob
        _loss_kernel[(1,)](
            log_prob.contiguous(),
            old_log_prob.contiguous(),
            advantages.contiguous(),
            base.contiguous(),
            losses,
            slopes,
            log_prob.numel(),
            log_prob.shape[1],
            KL=base_log_prob is not None,
            BLOCK=BLOCK,
        )
        ctx.save_for_backward(slopes)
        ctx.dtype = log_prob.dtype
        surrogate, kl = losses.to(log_prob.dtype).unbind()
        return surrogate, kl

    @staticmethod
    def backward(ctx: Any, grad: Tensor, grad_kl: Tensor) -> tuple[Tensor, None, None, None]:
        (slopes,) = ctx.saved_tensors
        out = torch.empty(slopes.shape[1:], dtype=ctx.dtype, device=slopes.device)
        size = out.numel()
        _slope_kernel[(triton.cdiv(size, BLOCK),)](slopes, grad, grad_kl, out, size, BLOCK=BLOCK)
        return out, None, None, None


@triton.jit(do_not_specialize=["size", "k"])
def _loss_kernel(
    log_prob, old_log_prob, advantages, base_log_prob, losses, slopes, size, k,
    KL: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Sum both losses in one program: a step has at most a few thousand sampled tokens."""
    surrogate_sum = 0.0
    kl_sum = 0.0
    for start in range(0, size, BLOCK):
        at = start + tl.arange(0, BLOCK)
        inside = at < size
        new = tl.load(log_prob + at, mask=inside, other=0.0).to(tl.float32)
        old = tl.load(old_log_prob + at, mask=inside, other=0.0).to(tl.float32)
        A = tl.load(advantages + at // k, mask=inside, other=0.0).to(tl.float32)
        loss = -A * tl.exp(new - old)  # which is its own derivative
        surrogate_sum += tl.sum(loss)
        tl.store(slopes + at, loss / size, mask=inside)
        kl_slope = tl.zeros([BLOCK], dtype=tl.float32)
        if KL:
            gap = tl.load(base_log_prob + at, mask=inside, other=0.0).to(tl.float32) - new
            kl_sum += tl.sum(tl.exp(gap) - gap - 1)  # 0 outside, where gap is 0
            kl_slope = (1 - tl.exp(gap)) / size
        tl.store(slopes + size + at, kl_slope, mask=inside)
    tl.store(losses, surrogate_sum / size)
    tl.store(losses + 1, kl_sum / size)


@triton.jit(do_not_specialize=["size"])
def _slope_kernel(slopes, grad, grad_kl, out, size, BLOCK: tl.constexpr):
    """Multiply the slopes of both losses by the losses' gradients, and add them up."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = at < size
    surrogate = tl.load(slopes + at, mask=inside, other=0.0)
    kl = tl.load(slopes + size + at, mask=inside, other=0.0)
    total = surrogate * tl.load(grad).to(tl.float32) + kl * tl.load(grad_kl).to(tl.float32)
    tl.store(out + at, total.to(out.dtype.element_ty), mask=inside)
