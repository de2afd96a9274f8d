"""Attention over prefix and tail by torch's fused kernel, merged by log-sum-exp.

All rows of a prefix attend to it as one long query, so it is read once. The kernel runs over each
part of the prefix, for the rows that see all of it, and once over the tail, and the outputs are
weighted by the softmax mass that every part has: cascade inference (FlashInfer, arXiv 2501.01005),
``merge_attn_states`` in vLLM. No score is written to memory, and no part needs a mask.
"""

from collections.abc import Callable
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from refine_server.kernels.cascade_attention import naive
from refine_server.kernels.cascade_attention.query_gradient import query_gradient
from refine_server.kernels.host_values import host_values


def cascade_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    prefix_k: Tensor,
    prefix_v: Tensor,
    scale: float,
    prefix_length: Tensor | None = None,
    tail_mask: Tensor | None = None,
) -> Tensor:
    """Compute ``naive.cascade_attention`` part by part; same arguments, same results.

    The fused kernel is torch's for CPUs and crashes on an empty prefix; the definition runs for
    other devices and for an empty prefix.
    """
    inputs = q, k, v, prefix_k, prefix_v
    P = prefix_k.shape[2]
    if q.device.type != "cpu" or P == 0:
        return naive.cascade_attention(*inputs, scale, prefix_length, tail_mask)
    parts = parts_of_prefixes(prefix_length, len(q), len(prefix_k), P)
    if not torch.is_grad_enabled():
        return _attend_and_merge(*inputs, scale, parts, tail_mask)[0]
    apply: Callable[..., Tensor] = _CascadeAttention.apply
    return apply(*inputs, scale, parts, tail_mask)


_flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default
_flash_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward.default
"""What ``F.scaled_dot_product_attention`` runs on CPUs; these also return the log-sum-exp."""


class Part(NamedTuple):
    """Neighbouring tokens of prefixes, and the consecutive rows that see all of them."""

    prefixes: slice
    """The prefixes that these rows share, an equal number of rows each."""
    tokens: slice
    """The tokens, counted in the prefixes."""
    rows: slice
    """The rows, of all B."""

    def cut(self, prefix: Tensor) -> Tensor:
        """Cut prefix [R, H, P, D] to these tokens."""
        return prefix[self.prefixes, :, self.tokens]

    def fold(self, x: Tensor) -> Tensor:
        """Lay these rows of a prefix out as one long sequence: of [B, H, N, D], [r, H, b/r N, D].

        b is the number of these rows, and r that of their prefixes.
        """
        x = x[self.rows]
        (b, H, N, D), r = x.shape, self.prefixes.stop - self.prefixes.start
        return x if r == b else x.view(r, b // r, H, N, D).transpose(1, 2).reshape(r, H, -1, D)

    def unfold(self, x: Tensor, like: Tensor) -> Tensor:
        """Invert ``fold``, to the shape of rows of ``like`` [B, H, N, _]: [b, H, N, D]."""
        r, b, N = x.shape[0], self.rows.stop - self.rows.start, like.shape[2]
        return x if r == b else x.view(r, x.shape[1], b // r, N, -1).transpose(1, 2).flatten(0, 1)


def parts_of_prefixes(prefix_length: Tensor | None, B: int, R: int, P: int) -> list[Part]:
    """Divide what B rows see of R prefixes of P tokens into parts that need no mask.

    Where rows stand in the order of their lengths, as branches of a document do, a row sees what
    the row before it sees and some tokens more: every token is in one part, with all later rows.
    """
    lengths = [P] if prefix_length is None else host_values(prefix_length)
    if all(length == P for length in lengths):
        return [Part(slice(0, R), slice(0, P), slice(0, B))]
    shared = B // R  # rows that share a prefix
    ordered = [b for b in range(B) if b % shared == 0 or lengths[b] < lengths[b - 1]]
    parts = []
    for first, end in pairwise([*ordered, B]):
        prefix, seen = slice(first // shared, first // shared + 1), 0
        for row in range(first, end):
            if lengths[row] > seen:
                parts.append(Part(prefix, slice(seen, lengths[row]), slice(row, end)))
                seen = lengths[row]
    return parts


def _attend_and_merge(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    prefix_k: Tensor,
    prefix_v: Tensor,
    scale: float,
    parts: list[Part],
    tail_mask: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Return the output, and the log-sum-exp of all scores [B, H, N, 1]."""
    o, lse = _flash(q, k, v, attn_mask=tail_mask, scale=scale)
    lse = lse.unsqueeze(-1)
    for part in parts:
        long, keys, values = part.fold(q), part.cut(prefix_k), part.cut(prefix_v)
        o_prefix, lse_prefix = _flash(long, keys, values, scale=scale)
        o_prefix, lse_prefix = part.unfold(o_prefix, q), part.unfold(lse_prefix.unsqueeze(-1), q)
        o_rows, lse_rows = o[part.rows], lse[part.rows]
        o_rows.lerp_(o_prefix, (lse_prefix - lse_rows).sigmoid_())
        torch.logaddexp(lse_rows, lse_prefix, out=lse_rows)
    return o, lse


class _CascadeAttention(torch.autograd.Function):
    """The merged attention with its backward pass.

    torch's backward kernel computes the attention weights again from the scores and their
    log-sum-exp. Given the output and the log-sum-exp of prefix and tail together, one call for each
    part returns the gradients of that part. For a prefix whose keys and values need no gradient,
    ``query_gradient`` leaves out the two of five products that are theirs.
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
        parts: list[Part],
        tail_mask: Tensor | None,
    ) -> Tensor:
        inputs = q, k, v, prefix_k, prefix_v
        o, lse = _attend_and_merge(*inputs, scale, parts, tail_mask)
        if any(ctx.needs_input_grad):
            ctx.save_for_backward(*inputs, o, lse, tail_mask)
            ctx.scale, ctx.parts = scale, parts
        return o

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, prefix_k, prefix_v, o, lse, tail_mask = ctx.saved_tensors
        grad = grad.contiguous()
        grad_q, grad_k, grad_v = _flash_backward(
            *(grad, q, k, v, o, lse[..., 0], 0.0, False), attn_mask=tail_mask, scale=ctx.scale
        )
        frozen = not any(ctx.needs_input_grad[3:5])
        grad_prefix_k = None if frozen else torch.zeros_like(prefix_k)
        grad_prefix_v = None if frozen else torch.zeros_like(prefix_v)
        for part in ctx.parts:
            own_grad, own_q, own_o, own_lse = (part.fold(x) for x in (grad, q, o, lse))
            keys, values = part.cut(prefix_k), part.cut(prefix_v)
            if grad_prefix_k is None or grad_prefix_v is None:
                own = own_grad, own_q, own_o, own_lse, keys, values
                from_prefix = query_gradient(*own, ctx.scale)
            else:
                from_prefix, to_keys, to_values = _flash_backward(
                    *(own_grad, own_q, keys, values, own_o, own_lse[..., 0], 0.0, False),
                    scale=ctx.scale,
                )
                part.cut(grad_prefix_k).add_(to_keys)
                part.cut(grad_prefix_v).add_(to_values)
            grad_q[part.rows] += part.unfold(from_prefix, q)
        return grad_q, grad_k, grad_v, grad_prefix_k, grad_prefix_v, None, None, None
