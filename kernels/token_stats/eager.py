"""Token statistics for one block of rows at a time, without an [N, V] matrix.

A token's log-probability depends on its own row only, so the forward pass already knows its
gradient with respect to that row, d log p / d h = (W[target] - p W) / temperature, up to a factor
that comes with the backward pass. Keeping these [N, D] instead of the inputs turns the backward
pass into one multiplication, and the logits are not computed twice.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from refine_server.kernels.token_stats import TokenStats

ROWS_AT_ONCE = 128


def token_stats(
    hidden: Tensor, weight: Tensor, targets: Tensor, temperature: float = 1.0
) -> TokenStats:
    """Compute ``naive.token_stats`` block by block; same arguments, same results."""
    needs_grad = torch.is_grad_enabled() and (hidden.requires_grad or weight.requires_grad)
    if needs_grad:
        apply: Callable[..., tuple[Tensor, ...]] = _TokenStats.apply
        return TokenStats(*apply(hidden, weight, targets, temperature))
    return _forward(hidden, weight, targets, temperature, with_slope=False)[0]


def _forward(
    hidden: Tensor, weight: Tensor, targets: Tensor, temperature: float, *, with_slope: bool
) -> tuple[TokenStats, Tensor | None]:
    """Return the statistics and, if asked for, d log_prob / d hidden [N, D]."""
    dtype = torch.promote_types(hidden.dtype, torch.float32)
    log_prob, entropy, lse = hidden.new_empty(3, hidden.shape[0], dtype=dtype).unbind()
    slope = torch.empty_like(hidden) if with_slope else None
    # One scratch buffer for all blocks: fresh memory for each would cost a fifth of the time.
    scratch = hidden.new_empty(2, min(ROWS_AT_ONCE, len(hidden)), len(weight), dtype=dtype)
    for start in range(0, hidden.shape[0], ROWS_AT_ONCE):
        rows = slice(start, start + ROWS_AT_ONCE)
        out = scratch[:, : hidden[rows].shape[0]]
        logits, top = _below_top(hidden[rows], weight, temperature, out[0])
        p = torch.exp(logits, out=out[1])
        total = p.sum(-1)
        log_total = total.log()
        log_prob[rows] = logits.gather(-1, targets[rows, None]).squeeze(-1) - log_total
        expected = logits.mul_(p).sum(-1)  # of the logits, which are not needed again
        entropy[rows] = log_total - expected / total
        lse[rows] = log_total + top
        if slope is not None:
            mean = (p.to(weight.dtype) @ weight).div_(total[:, None])  # [rows, D]
            slope[rows] = weight[targets[rows]].sub_(mean).div_(temperature)
    return TokenStats(log_prob, entropy, lse), slope


def _below_top(
    hidden: Tensor, weight: Tensor, temperature: float, out: Tensor
) -> tuple[Tensor, Tensor]:
    """Compute n rows' logits minus the highest, into ``out`` [n, V], and the highest one, [n]."""
    if out.dtype == hidden.dtype:
        logits = torch.mm(hidden, weight.T, out=out)
    else:
        logits = out.copy_(hidden @ weight.T)
    if temperature != 1.0:
        logits /= temperature
    top = logits.amax(-1)
    return logits.sub_(top[:, None]), top


class _TokenStats(torch.autograd.Function):
    """The statistics with their backward pass."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, temperature: float
    ) -> tuple[Tensor, ...]:
        stats, slope = _forward(hidden, weight, targets, temperature, with_slope=True)
        kept = (hidden, weight, targets) if ctx.needs_input_grad[1] else ()
        ctx.save_for_backward(slope, *kept)
        ctx.temperature = temperature
        ctx.mark_non_differentiable(stats.entropy, stats.lse)
        return tuple(stats)

    @staticmethod
    def backward(
        ctx: Any, grad: Tensor, *_others: Tensor
    ) -> tuple[Tensor, Tensor | None, None, None]:
        slope, *kept = ctx.saved_tensors
        grad_hidden = slope * grad[:, None].to(slope.dtype)
        if not kept:
            return grad_hidden, None, None, None
        hidden, weight, targets = kept
        grad_weight = torch.zeros_like(weight)
        for start in range(0, hidden.shape[0], ROWS_AT_ONCE):
            rows = slice(start, start + ROWS_AT_ONCE)
            h = hidden[rows]
            scratch = h.new_empty(h.shape[0], weight.shape[0], dtype=grad.dtype)
            p = _below_top(h, weight, ctx.temperature, scratch)[0].softmax(-1)
            g = (grad[rows, None] / ctx.temperature).to(p.dtype)
            p *= -g
            p.scatter_add_(-1, targets[rows, None], g)
            grad_weight += p.to(h.dtype).T @ h
        return grad_hidden, grad_weight, None, None
