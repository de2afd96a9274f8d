"""Attention over prefix and tail by torch's fused kernel, merged by log-sum-exp.

All rows of a prefix attend to it as one long query, so it is read once. The kernel runs once over
the prefix and once over the tail, and the outputs are weighted by the softmax mass that either part
has: cascade inference (FlashInfer, arXiv 2501.01005), ``merge_attn_states`` in vLLM. No score is
written to memory, and a part that is seen whole needs no mask.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from refine_server.kernels.cascade_attention import naive


def cascade_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    prefix_k: Tensor,
    prefix_v: Tensor,
    scale: float,
    prefix_mask: Tensor | None = None,
    tail_mask: Tensor | None = None,
) -> Tensor:
    """Compute ``naive.cascade_attention`` part by part; same arguments, same results.

    The fused kernel is torch's for CPUs and crashes on an empty prefix; the definition runs for
    other devices and for an empty prefix.
    """
    inputs = q, k, v, prefix_k, prefix_v, scale, prefix_mask, tail_mask
    if q.device.type != "cpu" or prefix_k.shape[2] == 0:
        return naive.cascade_attention(*inputs)
    if not torch.is_grad_enabled():
        return _attend_and_merge(*inputs)[0]
    apply: Callable[..., Tensor] = _CascadeAttention.apply
    return apply(*inputs)


_flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default
_flash_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward.default
"""What ``F.scaled_dot_product_attention`` runs on CPUs; these also return the log-sum-exp."""


def _attend_and_merge(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    prefix_k: Tensor,
    prefix_v: Tensor,
    scale: float,
    prefix_mask: Tensor | None,
    tail_mask: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the output, and the log-sum-exp [B, H, N, 1] of the scores of either part."""
    long = _fold_rows(q, prefix_k.shape[0])
    o_prefix, lse_prefix = _flash(long, prefix_k, prefix_v, attn_mask=prefix_mask, scale=scale)
    o_tail, lse_tail = _flash(q, k, v, attn_mask=tail_mask, scale=scale)
    o_prefix, lse_prefix = _unfold_rows(o_prefix, q), _unfold_rows(lse_prefix.unsqueeze(-1), q)
    lse_tail = lse_tail.unsqueeze(-1)
    return torch.lerp(o_tail, o_prefix, (lse_prefix - lse_tail).sigmoid_()), lse_prefix, lse_tail


class _CascadeAttention(torch.autograd.Function):
    """The merged attention with its backward pass.

    torch's backward kernel computes the attention weights again from the scores and their
    log-sum-exp. Given the output and the log-sum-exp of prefix and tail together, one call for each
    part returns the gradients of that part.
    """

    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        prefix_k: Tensor,
        prefix_v: Tensor,
        scale: float,
        prefix_mask: Tensor | None,
        tail_mask: Tensor | None,
    ) -> Tensor:
        inputs = q, k, v, prefix_k, prefix_v
        o, lse_prefix, lse_tail = _attend_and_merge(*inputs, scale, prefix_mask, tail_mask)
        if any(ctx.needs_input_grad):
            lse = torch.logaddexp(lse_prefix, lse_tail)
            ctx.save_for_backward(*inputs, o, lse, prefix_mask, tail_mask)
            ctx.scale = scale
        return o

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, prefix_k, prefix_v, o, lse, prefix_mask, tail_mask = ctx.saved_tensors
        R = prefix_k.shape[0]
        grad_q, grad_k, grad_v = _flash_backward(
            *(grad.contiguous(), q, k, v, o, lse[..., 0]),
            *(0.0, False),
            attn_mask=tail_mask,
            scale=ctx.scale,
        )
        long_q, long_o, long_grad = (_fold_rows(x, R) for x in (q, o, grad))
        from_prefix, grad_prefix_k, grad_prefix_v = _flash_backward(
            *(long_grad, long_q, prefix_k, prefix_v, long_o, _fold_rows(lse, R)[..., 0]),
            *(0.0, False),
            attn_mask=prefix_mask,
            scale=ctx.scale,
        )
        return (
            grad_q + _unfold_rows(from_prefix, q),
            grad_k,
            grad_v,
            grad_prefix_k,
            grad_prefix_v,
            None,
            None,
            None,
        )


def _fold_rows(x: Tensor, R: int) -> Tensor:
    """Lay the rows of a prefix out as one long sequence: [B, H, N, D] to [R, H, B/R N, D]."""
    B, H, N, D = x.shape
    if R == B:
        return x
    return x.view(R, B // R, H, N, D).transpose(1, 2).reshape(R, H, B // R * N, D)


def _unfold_rows(x: Tensor, like: Tensor) -> Tensor:
    """Invert ``_fold_rows``: [R, H, B/R N, D] to [B, H, N, D], with B, H and N as in ``like``."""
    B, H, N, _ = like.shape
    R = x.shape[0]
    if R == B:
        return x
    return x.view(R, H, B // R, N, -1).transpose(1, 2).reshape(B, H, N, -1)
