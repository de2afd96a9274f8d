"""Token statistics in one pass over blocks of the vocabulary, without an [N, V] matrix.

Forward: a program owns some rows and a share of the vocabulary. It multiplies block by block and
keeps, as online softmax does, the running maximum m of the logits l, s = sum e^(l - m) and
w = sum (l - m) e^(l - m); a second, small kernel merges the shares. Entropy is log s - w / s.

Backward: d log p / d logits = (onehot - p) / temperature is computed again from lse for a slab of
the vocabulary, whose size bounds the scratch buffer. The two products with it are plain matrix
products and are left to the vendor's library.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from refine_server.kernels.token_stats import TokenStats
from refine_server.kernels.triton_support import LOWEST, PROGRAMS, check_dtype, dot

SLAB = 2**26
"""Elements of the backward pass's scratch buffer at most (128 MiB in bf16)."""

BLOCK_V = 128


def token_stats(
    hidden: Tensor, weight: Tensor, targets: Tensor, temperature: float = 1.0
) -> TokenStats:
    """Compute ``naive.token_stats`` in one pass; same arguments, same results."""
    check_dtype(hidden, weight)
    return TokenStats(*_TokenStats.apply(hidden, weight, targets, temperature))


class _TokenStats(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, temperature: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        hidden, weight, targets = (x.contiguous() for x in (hidden, weight, targets))
        log_prob, entropy, lse = _forward(hidden, weight, targets, 1 / temperature)
        ctx.save_for_backward(hidden, weight, targets, lse)
        ctx.scale = 1 / temperature
        ctx.mark_non_differentiable(entropy, lse)
        return log_prob, entropy, lse

    @staticmethod
    def backward(
        ctx: Any, grad: Tensor, *_: Any
    ) -> tuple[Tensor | None, Tensor | None, None, None]:
        hidden, weight, targets, lse = ctx.saved_tensors
        wants_hidden, wants_weight = ctx.needs_input_grad[:2]
        grad_hidden = torch.zeros_like(hidden, dtype=torch.float32) if wants_hidden else None
        grad_weight = torch.empty_like(weight) if wants_weight else None
        V = weight.shape[0]
        slab = max(BLOCK_V, SLAB // max(hidden.shape[0], 1) // BLOCK_V * BLOCK_V)
        for first in range(0, V, slab):
            columns = slice(first, min(first + slab, V))
            slope = _slope(hidden, weight, targets, lse, grad, ctx.scale, columns)  # [N, slab]
            if grad_hidden is not None:
                grad_hidden += slope @ weight[columns]
            if grad_weight is not None:
                grad_weight[columns] = slope.T @ hidden
        return _as(grad_hidden, hidden), grad_weight, None, None


def _as(grad: Tensor | None, like: Tensor) -> Tensor | None:
    return None if grad is None else grad.to(like.dtype)


def _tile(hidden: Tensor) -> dict[str, int]:
    """Return the launch parameters that fit hidden [N, D]."""
    rows = 128 if hidden.shape[0] > 64 else 64
    narrow = hidden.dtype == torch.float32
    return {
        "D": hidden.shape[1],
        "BLOCK_N": rows,
        "BLOCK_V": BLOCK_V,
        "BLOCK_D": 32 if narrow else 64,
        "num_warps": 8 if rows == 128 else 4,
        "num_stages": 3,
    }


def _forward(
    hidden: Tensor, weight: Tensor, targets: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    N, V = hidden.shape[0], weight.shape[0]
    tile = _tile(hidden)
    row_blocks, blocks = triton.cdiv(N, tile["BLOCK_N"]), triton.cdiv(V, BLOCK_V)
    shares = min(triton.cdiv(PROGRAMS, max(row_blocks, 1)), blocks)
    per_share = triton.cdiv(blocks, shares)
    shares = triton.cdiv(blocks, per_share)  # none is empty
    partial = hidden.new_empty(4, shares, N, dtype=torch.float32)
    # Each of its own: where one begins within another, its alignment would depend on N, and with
    # it the kernel that is compiled.
    log_prob, entropy, lse = (hidden.new_empty(N, dtype=torch.float32) for _ in range(3))
    if N == 0:
        return log_prob, entropy, lse
    _share_kernel[(row_blocks, shares)](
        hidden, weight, targets, partial, scale, N, V, per_share, **tile
    )
    _merge_kernel[(triton.cdiv(N, 64),)](
        partial, log_prob, entropy, lse, N, shares, BLOCK_N=64, num_warps=2
    )
    return log_prob, entropy, lse


def _slope(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    lse: Tensor,
    grad: Tensor,
    scale: float,
    columns: slice,
) -> Tensor:
    """Compute grad * d log_prob / d logits for some columns of the vocabulary: [N, columns]."""
    N = hidden.shape[0]
    tile = _tile(hidden)
    width = columns.stop - columns.start
    slope = hidden.new_empty(N, width)
    if N:
        _slope_kernel[(triton.cdiv(N, tile["BLOCK_N"]), triton.cdiv(width, BLOCK_V))](
            hidden, weight[columns], targets, lse, grad.contiguous(), slope, scale, N, width,
            columns.start, **tile,
        )  # fmt: skip
    return slope


@triton.jit
def _logits(hidden, weight, rows, columns, N, V, D: tl.constexpr, BLOCK_D: tl.constexpr):
    """Compute hidden[rows] @ weight[columns].T in fp32: [BLOCK_N, BLOCK_V]."""
    acc = tl.zeros([rows.shape[0], columns.shape[0]], dtype=tl.float32)
    inner = tl.arange(0, BLOCK_D)
    h_at = hidden + rows.to(tl.int64)[:, None] * D + inner[None, :]
    w_at = weight + columns.to(tl.int64)[None, :] * D + inner[:, None]
    row_ok, column_ok = rows[:, None] < N, columns[None, :] < V
    for d in range(0, D, BLOCK_D):
        h = tl.load(h_at + d, mask=row_ok & (inner[None, :] < D - d), other=0.0)
        w = tl.load(w_at + d, mask=column_ok & (inner[:, None] < D - d), other=0.0)
        acc = dot(h, w, acc)
    return acc


@triton.jit(do_not_specialize=["N", "per_share"])
def _share_kernel(
    hidden, weight, targets, partial, scale, N, V, per_share,
    D: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_V: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Reduce one share of the vocabulary to m, s, w and the target's logit, for BLOCK_N rows."""
    rows = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    share = tl.program_id(1)
    row_ok = rows < N
    target = tl.load(targets + rows, mask=row_ok, other=-1)
    m = tl.full([BLOCK_N], LOWEST, dtype=tl.float32)
    s = tl.zeros([BLOCK_N], dtype=tl.float32)
    w = tl.zeros([BLOCK_N], dtype=tl.float32)
    at_target = tl.zeros([BLOCK_N], dtype=tl.float32)
    for block in range(share * per_share, tl.minimum((share + 1) * per_share, tl.cdiv(V, BLOCK_V))):
        columns = block * BLOCK_V + tl.arange(0, BLOCK_V)
        logits = _logits(hidden, weight, rows, columns, N, V, D, BLOCK_D) * scale
        inside = columns[None, :] < V
        logits = tl.where(inside, logits, LOWEST)
        number = tl.where(logits == logits, logits, LOWEST)  # NaN reaches s, not the maximum
        higher = tl.maximum(m, tl.max(number, axis=1))
        shrink = tl.exp(m - higher)
        gap = logits - higher[:, None]
        p = tl.where(inside, tl.exp(gap), 0.0)
        w = shrink * (w + (m - higher) * s) + tl.sum(tl.where(inside, p * gap, 0.0), axis=1)
        s = shrink * s + tl.sum(p, axis=1)
        m = higher
        at_target += tl.sum(tl.where(columns[None, :] == target[:, None], logits, 0.0), axis=1)
    out = share * N + rows
    size = tl.num_programs(1) * N
    tl.store(partial + out, m, mask=row_ok)
    tl.store(partial + size + out, s, mask=row_ok)
    tl.store(partial + 2 * size + out, w, mask=row_ok)
    tl.store(partial + 3 * size + out, at_target, mask=row_ok)


@triton.jit(do_not_specialize=["N", "shares"])
def _merge_kernel(partial, log_prob, entropy, lse, N, shares, BLOCK_N: tl.constexpr):
    """Merge the shares of BLOCK_N rows into their statistics."""
    rows = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    row_ok = rows < N
    size = shares * N
    m = tl.full([BLOCK_N], LOWEST, dtype=tl.float32)
    s = tl.zeros([BLOCK_N], dtype=tl.float32)
    w = tl.zeros([BLOCK_N], dtype=tl.float32)
    at_target = tl.zeros([BLOCK_N], dtype=tl.float32)
    for share in range(shares):
        at = share * N + rows
        m1 = tl.load(partial + at, mask=row_ok, other=0.0)
        s1 = tl.load(partial + size + at, mask=row_ok, other=1.0)
        w1 = tl.load(partial + 2 * size + at, mask=row_ok, other=0.0)
        at_target += tl.load(partial + 3 * size + at, mask=row_ok, other=0.0)
        higher = tl.maximum(m, m1)
        old, new = tl.exp(m - higher), tl.exp(m1 - higher)
        w = old * (w + (m - higher) * s) + new * (w1 + (m1 - higher) * s1)
        s = old * s + new * s1
        m = higher
    total = m + tl.log(s)
    tl.store(log_prob + rows, at_target - total, mask=row_ok)
    tl.store(entropy + rows, tl.log(s) - w / s, mask=row_ok)
    tl.store(lse + rows, total, mask=row_ok)


@triton.jit(do_not_specialize=["N", "first"])
def _slope_kernel(
    hidden, weight, targets, lse, grad, slope, scale, N, width, first,
    D: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_V: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Compute one tile of grad * d log_prob / d logits."""
    rows = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    columns = tl.program_id(1) * BLOCK_V + tl.arange(0, BLOCK_V)
    logits = _logits(hidden, weight, rows, columns, N, width, D, BLOCK_D) * scale
    row_ok = rows < N
    p = tl.exp(logits - tl.load(lse + rows, mask=row_ok, other=0.0)[:, None])
    hit = first + columns[None, :] == tl.load(targets + rows, mask=row_ok, other=-1)[:, None]
    g = tl.load(grad + rows, mask=row_ok, other=0.0) * scale
    out = g[:, None] * (tl.where(hit, 1.0, 0.0) - p)
    at = slope + rows.to(tl.int64)[:, None] * width + columns[None, :]
    tl.store(at, out.to(slope.dtype.element_ty), mask=row_ok[:, None] & (columns[None, :] < width))
