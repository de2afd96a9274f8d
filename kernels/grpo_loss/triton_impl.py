"""Both loss terms and their slopes in one launch; the backward pass is one more multiplication.

d loss / d log_prob is [N, k] and as cheap as the loss, so the forward pass keeps it. What comes
back goes straight into the backward kernels of ``token_stats``.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from refine_server.kernels.grpo_loss.naive import DUAL_CLIP
from refine_server.kernels.triton_support import check_dtype

BLOCK = 1024


def grpo_loss(
    log_prob: Tensor,
    old_log_prob: Tensor,
    advantages: Tensor,
    clip: float,
    base_log_prob: Tensor | None = None,
    mask: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """See ``naive.grpo_loss``: same arguments, same results."""
    check_dtype(log_prob)
    surrogate, kl = _GrpoLoss.apply(log_prob, old_log_prob, advantages, clip, base_log_prob, mask)
    return surrogate, kl


class _GrpoLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        log_prob: Tensor,
        old_log_prob: Tensor,
        advantages: Tensor,
        clip: float,
        base_log_prob: Tensor | None,
        mask: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        slopes = torch.empty(2, *log_prob.shape, device=log_prob.device)
        losses = torch.empty(2, device=log_prob.device)
        base = log_prob if base_log_prob is None else base_log_prob
        _loss_kernel[(1,)](
            log_prob.contiguous(),
            old_log_prob.contiguous(),
            advantages.contiguous(),
            base.contiguous(),
            log_prob if mask is None else mask.contiguous(),
            losses,
            slopes,
            log_prob.numel(),
            log_prob.shape[1],
            clip,
            DUAL_CLIP=DUAL_CLIP,
            KL=base_log_prob is not None,
            MASKED=mask is not None,
            BLOCK=BLOCK,
        )
        ctx.save_for_backward(slopes)
        ctx.dtype = log_prob.dtype
        surrogate, kl = losses.to(log_prob.dtype).unbind()
        return surrogate, kl

    @staticmethod
    def backward(
        ctx: Any, grad: Tensor, grad_kl: Tensor
    ) -> tuple[Tensor, None, None, None, None, None]:
        (slopes,) = ctx.saved_tensors
        out = torch.empty(slopes.shape[1:], dtype=ctx.dtype, device=slopes.device)
        size = out.numel()
        _slope_kernel[(triton.cdiv(size, BLOCK),)](slopes, grad, grad_kl, out, size, BLOCK=BLOCK)
        return out, None, None, None, None, None


@triton.jit
def _loss_kernel(
    log_prob, old_log_prob, advantages, base_log_prob, mask, losses, slopes, size, k, clip,
    DUAL_CLIP: tl.constexpr, KL: tl.constexpr, MASKED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One program: a step has at most a few thousand sampled tokens."""
    count = size.to(tl.float32)
    if MASKED:
        count = 0.0
        for start in range(0, size, BLOCK):
            at = start + tl.arange(0, BLOCK)
            kept = tl.load(mask + at, mask=at < size, other=0)
            count += tl.sum(kept.to(tl.float32))
        count = tl.maximum(count, 1.0)
    surrogate_sum = 0.0
    kl_sum = 0.0
    for start in range(0, size, BLOCK):
        at = start + tl.arange(0, BLOCK)
        inside = at < size
        counts = inside
        if MASKED:
            counts = inside & (tl.load(mask + at, mask=inside, other=0) != 0)
        new = tl.load(log_prob + at, mask=inside, other=0.0).to(tl.float32)
        old = tl.load(old_log_prob + at, mask=inside, other=0.0).to(tl.float32)
        A = tl.load(advantages + at // k, mask=inside, other=0.0).to(tl.float32)
        ratio = tl.exp(new - old)
        free = -A * ratio
        bound = -A * tl.minimum(tl.maximum(ratio, 1 - clip), 1 + clip)
        loss = tl.maximum(free, bound)
        dual = (A < 0) & (loss > -A * DUAL_CLIP)
        loss = tl.where(dual, -A * DUAL_CLIP, loss)
        # Where the unclipped term is the larger one, or both are one and the same.
        slope = tl.where((free >= bound) & ~dual, free, 0.0)
        surrogate_sum += tl.sum(tl.where(counts, loss, 0.0))
        tl.store(slopes + at, tl.where(counts, slope / count, 0.0), mask=inside)
        kl_slope = tl.zeros([BLOCK], dtype=tl.float32)
        if KL:
            gap = tl.load(base_log_prob + at, mask=inside, other=0.0).to(tl.float32) - new
            kl_sum += tl.sum(tl.where(counts, tl.exp(gap) - gap - 1, 0.0))
            kl_slope = tl.where(counts, (1 - tl.exp(gap)) / count, 0.0)
        tl.store(slopes + size + at, kl_slope, mask=inside)
    tl.store(losses, surrogate_sum / count)
    tl.store(losses + 1, kl_sum / count)


@triton.jit
def _slope_kernel(slopes, grad, grad_kl, out, size, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = at < size
    surrogate = tl.load(slopes + at, mask=inside, other=0.0)
    kl = tl.load(slopes + size + at, mask=inside, other=0.0)
    total = surrogate * tl.load(grad).to(tl.float32) + kl * tl.load(grad_kl).to(tl.float32)
    tl.store(out + at, total.to(out.dtype.element_ty), mask=inside)
