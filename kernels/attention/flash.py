"""Attention over a prefix and a tail as several calls of torch's flash kernel for GPUs.

Each call attends to keys that all of its queries see, or causally to as many keys as there are
queries, so no call needs a mask and none writes a score to memory: to the parts of the prefix, to
the tail's tokens before the queries, and to the queries' own tokens. The outputs are merged in fp32
by their log-sum-exp (FlashInfer's cascade inference, arXiv 2501.01005).

Given the output and the log-sum-exp of all calls together, flash attention's backward pass returns
the gradients of one call's part: it computes the weights again from the scores and the log-sum-exp.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from refine_server.kernels.cascade_attention.eager import Part, parts_of_prefixes


class Flash(NamedTuple):
    """The fused kernel of a device, with grouped heads folded into longer queries."""

    forward: Callable[[Tensor, Tensor, Tensor, bool, float], tuple[Tensor, Tensor]]
    """From q [B, H, N, D], k, v [B, H, S, D], causality, scale: output, log-sum-exp [B, H, N]."""
    backward: Callable[..., tuple[Tensor, Tensor, Tensor]]
    """From the output's gradient, q, k, v, output, log-sum-exp, causality and scale: gradients."""


_forward_op = torch.ops.aten._scaled_dot_product_flash_attention.default
_backward_op = torch.ops.aten._scaled_dot_product_flash_attention_backward.default


def _forward(q: Tensor, k: Tensor, v: Tensor, causal: bool, scale: float) -> tuple[Tensor, Tensor]:
    o, lse, *_ = _forward_op(q, k, v, 0.0, causal, False, scale=scale)
    return o, lse


def _backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    o: Tensor,
    lse: Tensor,
    causal: bool,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    unused = torch.zeros((), dtype=torch.int64, device="cpu")  # the state of no dropout
    gradients: tuple[Tensor, Tensor, Tensor] = _backward_op(
        grad, q, k, v, o, lse, None, None, q.shape[2], k.shape[2], 0.0, causal, unused, unused,
        scale=scale,
    )  # fmt: skip
    return gradients


GPU = Flash(_forward, _backward)


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    prefix_k: Tensor | None = None,
    prefix_v: Tensor | None = None,
    prefix_length: Tensor | None = None,
    scale: float | None = None,
    window: int | None = None,
    *,
    flash: Flash = GPU,
) -> Tensor:
    """Compute ``naive.attention`` without a window; same arguments, same results.

    ``flash`` is the kernel of the tensors' device.
    """
    if window is not None:
        raise ValueError("the calls have no windows")
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    B, Hq, T, D = q.shape
    H, S = k.shape[1], k.shape[2]
    groups = Hq // H
    calls = []
    if T > 1:  # causal: the queries of heads that share a key cannot be one longer query
        own_k, own_v = (x[:, :, S - T :].repeat_interleave(groups, 1) for x in (k, v))
        calls.append(_Call(q, own_k, own_v, None))
    earlier = S - T if T > 1 else S
    folded = q.reshape(B, H, groups * T, D)
    if earlier:
        calls.append(_Call(folded, k[:, :, :earlier], v[:, :, :earlier], _whole(B, earlier)))
    if prefix_k is not None and prefix_v is not None and prefix_k.shape[2]:
        parts = parts_of_prefixes(prefix_length, B, len(prefix_k), prefix_k.shape[2])
        keys = ((part, part.cut(prefix_k), part.cut(prefix_v)) for part in parts)
        calls += [_Call(folded, own_k, own_v, part) for part, own_k, own_v in keys]
    tensors = [x for call in calls for x in (call.k, call.v)]
    apply: Callable[..., Tensor] = _Merged.apply
    return apply(q, scale, flash, [call.part for call in calls], *tensors)


class _Call(NamedTuple):
    """One call of the kernel."""

    q: Tensor
    k: Tensor
    v: Tensor
    part: Part | None
    """The rows that see these keys; None for the causal call over the queries' own tokens."""


def _whole(rows: int, tokens: int) -> Part:
    return Part(slice(0, rows), slice(0, tokens), slice(0, rows))


class _Merged(torch.autograd.Function):
    """The calls, merged: k and v of each call alternate behind the other arguments."""

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, scale: float, flash: Flash, parts: Sequence[Part | None], *kv: Tensor
    ) -> Tensor:
        B, Hq, T, D = q.shape
        o = torch.zeros(
            B, Hq, T, D, dtype=torch.promote_types(q.dtype, torch.float32), device=q.device
        )
        lse = o.new_full((B, Hq, T), -torch.inf)
        for part, k, v in zip(parts, kv[::2], kv[1::2], strict=True):
            rows = slice(None) if part is None else part.rows
            o_part, lse_part = flash.forward(_queries(q, k, part), k, v, part is None, scale)
            o_part, lse_part = _unfold(o_part, q, part), _unfold(lse_part[..., None], q, part)
            own, total = o[rows], lse[rows][..., None]
            share = (lse_part.to(total.dtype) - total).sigmoid()
            own.lerp_(o_part.to(own.dtype), share)
            lse[rows] = torch.logaddexp(total, lse_part.to(total.dtype))[..., 0]
        o = o.to(q.dtype)
        ctx.save_for_backward(q, o, lse, *kv)
        ctx.scale, ctx.flash, ctx.parts = scale, flash, parts
        return o

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, o, lse, *kv = ctx.saved_tensors
        grad, grad_q = grad.contiguous(), torch.zeros_like(o, dtype=lse.dtype)
        grads: list[Tensor] = []
        for part, k, v in zip(ctx.parts, kv[::2], kv[1::2], strict=True):
            rows = slice(None) if part is None else part.rows
            own = (_queries(x, k, part) for x in (grad, q, o))
            own_grad, own_q, own_o = own
            own_lse = _queries(lse[..., None], k, part)[..., 0].contiguous()
            of_q, *of_kv = ctx.flash.backward(
                own_grad, own_q, k, v, own_o, own_lse, part is None, ctx.scale
            )
            grad_q[rows] += _unfold(of_q, q, part)
            grads += of_kv
        return grad_q.to(q.dtype), None, None, None, *grads


def _queries(x: Tensor, k: Tensor, part: Part | None) -> Tensor:
    """Lay x [B, Hq, T, D] out as the queries of a call: heads and rows that share keys in a row."""
    if part is None:
        return x
    B, Hq, T, D = x.shape
    return part.fold(x.reshape(B, k.shape[1], Hq // k.shape[1] * T, D))


def _unfold(x: Tensor, q: Tensor, part: Part | None) -> Tensor:
    """Invert ``_queries``: back to [rows, Hq, T, D]."""
    if part is None:
        return x
    B, Hq, T, _ = q.shape
    like = q.reshape(B, x.shape[1], Hq // x.shape[1] * T, -1)
    return part.unfold(x, like).reshape(-1, Hq, T, x.shape[-1])
