"""Muon's orthogonalisation of all matrices of all memories, three launches an iteration.

With A = x x^T and P = b A + c A A, an iteration is x' = a x + P x. With g the gradient of x' and
S the sum of g x^T and its transpose, and because A and P are symmetric, its backward pass is

    dx = a g + P g + (b S + c (S A + A S)) x

Each result is rounded where the definition rounds it: to bf16 after every operation.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from refine_server.kernels.lact_swiglu import MUON_COEFFICIENTS, MUON_EPS, Weights, three
from refine_server.kernels.triton_support import dot, to_bf16


def orthogonal(steps: Weights) -> Weights:
    """Compute ``naive.orthogonal`` of all three at once: transposed where tall, they are alike."""
    *batch, _, _ = steps[0].shape
    tall = [s.shape[-2] > s.shape[-1] for s in steps]
    wide = [s.mT if t else s for s, t in zip(steps, tall, strict=True)]
    x = torch.stack([s.to(torch.bfloat16) for s in wide]).flatten(0, -3)  # [3 B H, n, m]
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + MUON_EPS)
    for coefficients in MUON_COEFFICIENTS:
        x = _Iteration.apply(x, *coefficients)
    results = x.view(3, *batch, *x.shape[1:])
    pairs = zip(results, steps, tall, strict=True)
    return three((r.mT if t else r).to(s.dtype) for r, s, t in pairs)


class _Iteration(torch.autograd.Function):
    """One Newton–Schulz iteration of x [Z, n, m]."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, a: float, b: float, c: float) -> Tensor:
        ctx.save_for_backward(x)
        ctx.coefficients = a, b, c
        _, p = _polynomial(x, b, c)
        return _product(p, x, plus=x, plus_times=a)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None, None, None]:
        (x,) = ctx.saved_tensors
        a, b, c = ctx.coefficients
        gram, p = _polynomial(x, b, c)
        s = _with_transposed(_product(g, x.mT))
        half = _product(s, gram, times=c, plus=s, plus_times=b / 2)
        through_p = _product(p, g, plus=g, plus_times=a)
        return _product(_with_transposed(half), x, plus=through_p), None, None, None


def _polynomial(x: Tensor, b: float, c: float) -> tuple[Tensor, Tensor]:
    """Return A = x x^T and P = b A + c A A, [Z, n, n] each."""
    gram = _product(x, x.mT)
    return gram, _product(gram, gram, times=c, plus=gram, plus_times=b)


def _with_transposed(x: Tensor) -> Tensor:
    return x + x.mT


def _product(
    x: Tensor,
    y: Tensor,
    times: float = 1.0,
    plus: Tensor | None = None,
    plus_times: float = 1.0,
) -> Tensor:
    """Compute (times x) y + plus_times plus of bf16 x [Z, n, k], y [Z, k, m], plus [Z, n, m]."""
    Z, n, k = x.shape
    m = y.shape[-1]
    out = x.new_empty(Z, n, m)
    plus = None if plus is None else plus.contiguous()
    tile = 64 if max(n, m) > 32 else 32
    if Z:
        _product_kernel[(triton.cdiv(n, tile), triton.cdiv(m, tile), Z)](
            x, y, plus, out, times, plus_times, *x.stride(), *y.stride(), n, m, k,
            BLOCK=tile, BLOCK_K=64, num_warps=4, num_stages=3,
        )  # fmt: skip
    return out


@triton.jit
def _product_kernel(
    x, y, plus, out, times, plus_times, x_z, x_n, x_k, y_z, y_k, y_m, N, M, K,
    BLOCK: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Compute one tile of the product, with its sum."""
    z = tl.program_id(2).to(tl.int64)
    n = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    m = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inner = tl.arange(0, BLOCK_K)
    acc = tl.zeros([BLOCK, BLOCK], dtype=tl.float32)
    for start in range(0, K, BLOCK_K):
        k = start + inner
        x_ok, y_ok = (n < N)[:, None] & (k < K)[None, :], (k < K)[:, None] & (m < M)[None, :]
        xs = tl.load(x + z * x_z + n[:, None] * x_n + k[None, :] * x_k, mask=x_ok, other=0.0)
        ys = tl.load(y + z * y_z + k[:, None] * y_k + m[None, :] * y_m, mask=y_ok, other=0.0)
        acc = dot(to_bf16(xs.to(tl.float32) * times), ys, acc)
    at = z * N * M + n[:, None] * M + m[None, :]
    ok = (n < N)[:, None] & (m < M)[None, :]
    if plus is not None:
        term = tl.load(plus + at, mask=ok, other=0.0).to(tl.float32) * plus_times
        acc = to_bf16(acc).to(tl.float32) + to_bf16(term).to(tl.float32)
    tl.store(out + at, to_bf16(acc), mask=ok)
