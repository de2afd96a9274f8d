"""LaCT's memory, with the elementwise steps between its matrix products fused into the products.

One kernel computes gate = x w0^T and up = x w2^T of a tile side by side and then, while both are in
registers, one of

    read       hidden = silu(gate) up
    write      d_gate = d_hidden up silu'(gate), d_up = d_hidden silu(gate), and hidden
    backward   of the write: the gradients of gate, up and d_hidden, which need silu''

The backward pass of a read is a write. Products with nothing to fuse with are left to the vendor's
library.
"""

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from refine_server.kernels.lact_swiglu import Update, Weights
from refine_server.kernels.lact_swiglu.triton_muon import orthogonal
from refine_server.kernels.lact_swiglu.triton_update import add_momentum, add_steps
from refine_server.kernels.triton_support import check_dtype, dot

READ, WRITE, WRITE_BACKWARD = 0, 1, 2


def lact_apply(q: Tensor, w0: Tensor, w1: Tensor, w2: Tensor) -> Tensor:
    """Compute ``naive.lact_apply`` with fused products; same arguments, same results."""
    check_dtype(q)
    B, H, T, D = q.shape
    M = w0.shape[0]
    w0, w1, w2 = (w.to(q.dtype) for w in (w0, w1, w2))
    x = q.view(M, B // M, H, T, D).transpose(1, 2).reshape(M, H, B // M * T, D)
    hidden: Tensor = _Read.apply(x, w0, w2)
    o = hidden @ w1.mT
    return o.view(M, H, B // M, T, D).transpose(1, 2).reshape(B, H, T, D)


def lact_gradient(
    k: Tensor,
    v: Tensor,
    lr0: Tensor,
    lr1: Tensor,
    lr2: Tensor,
    w0: Tensor,
    w1: Tensor,
    w2: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute ``naive.lact_gradient`` with fused products; same arguments, same results."""
    check_dtype(k, v)
    w0, w1, w2 = (w.to(k.dtype) for w in (w0, w1, w2))
    d_gate, hidden, d_up = _Write.apply(k, v @ w1, w0, w2)  # [B, H, T, F]
    dw0 = d_gate.mT @ (k * lr0).to(k.dtype)
    dw1 = v.mT @ (hidden * lr1).to(k.dtype)
    dw2 = d_up.mT @ (k * lr2).to(k.dtype)
    return dw0.float(), dw1.float(), dw2.float()


def lact_update(
    steps: Weights,
    before: Weights,
    norms: Weights,
    momentum: Weights | None = None,
    keep: Tensor | None = None,
    *,
    muon: bool = False,
    prenorm: bool = False,
) -> Update:
    """Compute ``naive.lact_update`` in fused launches; same arguments, same results."""
    check_dtype(*steps, *before)
    if not muon:
        return add_steps(steps, before, norms, momentum, keep, prenorm)
    if momentum is not None:
        assert keep is not None
        steps = momentum = add_momentum(steps, momentum, keep)
    return add_steps(orthogonal(steps), before, norms, None, None, prenorm)._replace(
        momentum=momentum
    )


class _Read(torch.autograd.Function):
    """hidden = silu(x w0^T) * (x w2^T), [..., T, F]."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, w0: Tensor, w2: Tensor) -> Tensor:
        ctx.save_for_backward(x, w0, w2)
        (hidden,) = _launch(READ, x, w0, w2, [])
        return hidden

    @staticmethod
    def backward(ctx: Any, d_hidden: Tensor) -> tuple[Tensor | None, ...]:
        x, w0, w2 = ctx.saved_tensors
        d_gate, _, d_up = _launch(WRITE, x, w0, w2, [d_hidden])
        return _through_products(x, w0, w2, d_gate, d_up, ctx.needs_input_grad)


class _Write(torch.autograd.Function):
    """d_gate, hidden and d_up, [..., T, F] each, from x and d_hidden; differentiable again."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, d_hidden: Tensor, w0: Tensor, w2: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        ctx.save_for_backward(x, d_hidden, w0, w2)
        d_gate, hidden, d_up = _launch(WRITE, x, w0, w2, [d_hidden])
        return d_gate, hidden, d_up

    @staticmethod
    def backward(
        ctx: Any, of_d_gate: Tensor, of_hidden: Tensor, of_d_up: Tensor
    ) -> tuple[Tensor | None, ...]:
        x, d_hidden, w0, w2 = ctx.saved_tensors
        beside = [d_hidden, of_d_gate, of_hidden, of_d_up]
        of_gate, of_d_hidden, of_up = _launch(WRITE_BACKWARD, x, w0, w2, beside)
        wants_x, wants_d_hidden, *wants_weights = ctx.needs_input_grad
        wanted = (wants_x, *wants_weights)
        of_x, of_w0, of_w2 = _through_products(x, w0, w2, of_gate, of_up, wanted)
        return of_x, of_d_hidden if wants_d_hidden else None, of_w0, of_w2


def _through_products(
    x: Tensor,
    w0: Tensor,
    w2: Tensor,
    of_gate: Tensor,
    of_up: Tensor,
    wanted: Sequence[bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Compute gradients of x, w0 and w2 from those of gate = x w0^T and up = x w2^T."""
    return (
        of_gate @ w0 + of_up @ w2 if wanted[0] else None,
        of_gate.mT @ x if wanted[1] else None,
        of_up.mT @ x if wanted[2] else None,
    )


def _launch(mode: int, x: Tensor, w0: Tensor, w2: Tensor, beside: list[Tensor]) -> list[Tensor]:
    """Run a mode over x [..., T, D], w0 and w2 [..., F, D] and tensors [..., T, F] beside them."""
    x, w0, w2, *beside = (t.contiguous() for t in (x, w0, w2, *beside))
    *batch, T, D = x.shape
    units = w0.shape[-2]
    outputs = [x.new_empty(*batch, T, units) for _ in range(1 if mode == READ else 3)]
    memories = w0.numel() // (units * D)
    tall = 16 if T <= 16 else 64 if T <= 64 or mode == WRITE_BACKWARD else 128
    if memories and T:
        given = [*beside, *([x] * (4 - len(beside)))]
        written = [*outputs, *([x] * (3 - len(outputs)))]
        _swiglu_kernel[(triton.cdiv(T, tall), triton.cdiv(units, 64), memories)](
            x, w0, w2, *given, *written, T, F=units, D=D, MODE=mode,
            BLOCK_T=tall, BLOCK_F=64, BLOCK_D=32 if x.dtype == torch.float32 else 64,
            num_warps=8 if tall == 128 or mode == WRITE_BACKWARD else 4, num_stages=3,
        )  # fmt: skip
    return outputs


@triton.jit(do_not_specialize=["T"])
def _swiglu_kernel(
    x, w0, w2, d_hidden, of_d_gate, of_hidden, of_d_up, out0, out1, out2, T,
    F: tl.constexpr, D: tl.constexpr, MODE: tl.constexpr,
    BLOCK_T: tl.constexpr, BLOCK_F: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Compute one tile of the outputs of MODE (0 read, 1 write, 2 backward pass of a write)."""
    memory = tl.program_id(2).to(tl.int64)
    t = tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)
    f = tl.program_id(1) * BLOCK_F + tl.arange(0, BLOCK_F)
    inner = tl.arange(0, BLOCK_D)
    x_at = x + (memory * T + t)[:, None] * D + inner[None, :]
    w_at = (memory * F + f)[None, :] * D + inner[:, None]
    gate = tl.zeros([BLOCK_T, BLOCK_F], dtype=tl.float32)
    up = tl.zeros([BLOCK_T, BLOCK_F], dtype=tl.float32)
    for d in range(0, D, BLOCK_D):
        inside = inner < D - d
        xs = tl.load(x_at + d, mask=(t < T)[:, None] & inside[None, :], other=0.0)
        w_ok = (f < F)[None, :] & inside[:, None]
        gate = dot(xs, tl.load(w0 + w_at + d, mask=w_ok, other=0.0), gate)
        up = dot(xs, tl.load(w2 + w_at + d, mask=w_ok, other=0.0), up)
    at = (memory * T + t)[:, None] * F + f[None, :]
    ok = (t < T)[:, None] & (f < F)[None, :]
    sigmoid = tl.sigmoid(gate)
    active = gate * sigmoid
    if MODE == 0:
        tl.store(out0 + at, (active * up).to(out0.dtype.element_ty), mask=ok)
    else:
        dh = tl.load(d_hidden + at, mask=ok, other=0.0).to(tl.float32)
        slope = sigmoid * (1 + gate * (1 - sigmoid))  # silu'
        if MODE == 1:
            tl.store(out0 + at, (dh * up * slope).to(out0.dtype.element_ty), mask=ok)
            tl.store(out1 + at, (active * up).to(out1.dtype.element_ty), mask=ok)
            tl.store(out2 + at, (dh * active).to(out2.dtype.element_ty), mask=ok)
        else:
            p = tl.load(of_d_gate + at, mask=ok, other=0.0).to(tl.float32)
            r = tl.load(of_hidden + at, mask=ok, other=0.0).to(tl.float32)
            s = tl.load(of_d_up + at, mask=ok, other=0.0).to(tl.float32)
            bend = sigmoid * (1 - sigmoid) * (2 + gate * (1 - 2 * sigmoid))  # silu''
            of_gate = p * dh * up * bend + (s * dh + r * up) * slope
            of_dh = p * up * slope + s * active
            of_up = p * dh * slope + r * active
            tl.store(out0 + at, of_gate.to(out0.dtype.element_ty), mask=ok)
            tl.store(out1 + at, of_dh.to(out1.dtype.element_ty), mask=ok)
            tl.store(out2 + at, of_up.to(out2.dtype.element_ty), mask=ok)
