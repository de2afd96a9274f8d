"""Projection and LoRA of all requests in one launch, with gradients.

S-LoRA (arXiv 2311.03285) and Punica (arXiv 2310.18547) fuse the same op for serving. A tile of rows
belongs to one request. Beside x W^T it accumulates x A, which is the same product with a few more
columns, and it adds (x A) B before y is written once. The gradient of x, dy W + (dy B^T) A^T, has
the same form and comes from the same kernel; the gradients of A and B are sums over a request's
rows, plain products that are left to the vendor's library.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from refine_server.kernels.triton_support import check_dtype, dot


def batched_low_rank(
    x: Tensor, weight: Tensor, a: Tensor, b: Tensor, bias: Tensor | None = None
) -> Tensor:
    """Compute ``naive.batched_low_rank`` in one launch; same arguments, same results."""
    check_dtype(x, weight, a, b)
    rows = x.reshape(-1, x.shape[-1]).contiguous()  # [M, in]
    y: Tensor = _BatchedLowRank.apply(rows, weight, a, b, bias)
    return y.view(*x.shape[:-1], -1)


class _BatchedLowRank(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, a: Tensor, b: Tensor, bias: Tensor | None
    ) -> Tensor:
        y, low = _project(x, weight, a, b, bias)
        ctx.save_for_backward(x, weight, a, b, low)
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, a, b, low = ctx.saved_tensors
        wants_x, wants_weight, wants_a, wants_b, wants_bias = ctx.needs_input_grad
        grad = grad.contiguous()
        grad_x, grad_low = _project(grad, weight.T, b.mT, a.mT, None, only_low=not wants_x)
        return (
            grad_x if wants_x else None,
            grad.T @ x if wants_weight else None,
            torch.bmm(_rows(x, a).mT, _rows(grad_low, a)) if wants_a else None,
            torch.bmm(_rows(low, a).mT, _rows(grad, a)) if wants_b else None,
            grad.sum(0) if wants_bias else None,
        )


def _project(
    x: Tensor, weight: Tensor, a: Tensor, b: Tensor, bias: Tensor | None, *, only_low: bool = False
) -> tuple[Tensor, Tensor]:
    """Return y [M, out] and x A [M, rank]; y stays empty when ``only_low``."""
    (M, K), N, (R, _, rank) = x.shape, weight.shape[0], a.shape
    y, low = x.new_empty(0 if only_low else M, N), x.new_empty(M, rank)
    share = M // R  # rows of a request
    single = x.dtype == torch.float32
    fits = not single or rank <= 128  # x A and B of a large tile into shared memory
    tall = 128 if share >= 128 and fits else 64 if share >= 32 else 16
    wide = 128 if tall > 16 and fits else 64
    tiles = triton.cdiv(share, tall)  # of a request: tiles do not cross requests
    if M:
        _project_kernel[(1 if only_low else triton.cdiv(N, wide), tiles, R)](
            x, weight, a, b, x if bias is None else bias, y, low, share, N,
            *weight.stride(), *a.stride(), *b.stride(),
            K=K, RANK=rank, BLOCK_R=max(16, triton.next_power_of_2(rank)),
            BIAS=bias is not None, ONLY_LOW=only_low,
            BLOCK_M=tall, BLOCK_N=wide, BLOCK_K=32 if single else 64,
            num_warps=8 if tall == 128 else 4, num_stages=3,
        )  # fmt: skip
    return y, low


def _rows(x: Tensor, a: Tensor) -> Tensor:
    """Take apart the rows of x [M, width] by request: [R, M / R, width]."""
    return x.view(a.shape[0], -1, x.shape[-1])


@triton.jit(do_not_specialize=["share"])
def _project_kernel(
    x, weight, a, b, bias, y, low, share, N,
    stride_wn, stride_wk, stride_ar, stride_ak, stride_aj, stride_br, stride_bj, stride_bn,
    K: tl.constexpr, RANK: tl.constexpr, BLOCK_R: tl.constexpr,
    BIAS: tl.constexpr, ONLY_LOW: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """One tile of y: program (column tile, row tile of a request, request)."""
    request = tl.program_id(2)
    end = (request + 1) * share
    rows = request * share + tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
    columns = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    rank, inner = tl.arange(0, BLOCK_R), tl.arange(0, BLOCK_K)
    row_ok, column_ok, rank_ok = rows < end, columns < N, rank < RANK
    x_at = x + rows.to(tl.int64)[:, None] * K + inner[None, :]
    w_at = weight + columns[None, :] * stride_wn + inner[:, None] * stride_wk
    a_at = a + request * stride_ar + inner[:, None] * stride_ak + rank[None, :] * stride_aj
    acc = tl.zeros([BLOCK_M, BLOCK_N], dtype=tl.float32)
    acc_low = tl.zeros([BLOCK_M, BLOCK_R], dtype=tl.float32)
    for k in range(0, K, BLOCK_K):
        inside = inner < K - k
        xs = tl.load(x_at + k, mask=row_ok[:, None] & inside[None, :], other=0.0)
        a_s = tl.load(a_at + k * stride_ak, mask=inside[:, None] & rank_ok[None, :], other=0.0)
        acc_low = dot(xs, a_s, acc_low)
        if not ONLY_LOW:
            ws = tl.load(w_at + k * stride_wk, mask=inside[:, None] & column_ok[None, :], other=0.0)
            acc = dot(xs, ws, acc)
    lows = acc_low.to(x.dtype.element_ty)
    if tl.program_id(0) == 0:
        low_at = low + rows.to(tl.int64)[:, None] * RANK + rank[None, :]
        tl.store(low_at, lows, mask=row_ok[:, None] & rank_ok[None, :])
    if not ONLY_LOW:
        b_at = b + request * stride_br + rank[:, None] * stride_bj + columns[None, :] * stride_bn
        acc = dot(lows, tl.load(b_at, mask=rank_ok[:, None] & column_ok[None, :], other=0.0), acc)
        if BIAS:
            acc += tl.load(bias + columns, mask=column_ok, other=0.0).to(tl.float32)[None, :]
        y_at = y + rows.to(tl.int64)[:, None] * N + columns[None, :]
        tl.store(y_at, acc.to(y.dtype.element_ty), mask=row_ok[:, None] & column_ok[None, :])
