"""The update of the memory, in one launch for the three matrices of all memories.

A program owns a few whole rows, so momentum, sum, norm and rescaling happen in registers. With
u = before + steps + keep momentum, r = norm / (|u| + eps) and g the gradient of weights = r u,

    du = r g - u <g, u> r / (|u| (|u| + eps)) + the gradient of main
    d(steps) = du + the gradient of the new momentum

The backward pass adds u up again from tensors that are kept anyway.
"""

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from refine_server.kernels.lact_swiglu import NORM_EPS, Update, Weights, three

ELEMENTS = 2048
"""Elements of each tensor that a program holds: 16 a thread."""

NONE = (None, None, None)

Group = Sequence[Tensor] | tuple[None, None, None]
"""One tensor for each of the three matrices, or none of them."""


def add_steps(
    steps: Weights,
    before: Weights,
    norms: Weights,
    momentum: Weights | None,
    keep: Tensor | None,
    prenorm: bool,
) -> Update:
    """Compute ``naive.lact_update`` without Muon."""
    out = _AddSteps.apply(prenorm, keep, *steps, *before, *norms, *(momentum or NONE))
    return Update(
        three(out[:3]),
        three(out[3:6]) if prenorm else None,
        None if momentum is None else three(out[6:]),
    )


def add_momentum(steps: Weights, momentum: Weights, keep: Tensor) -> Weights:
    """Compute steps + keep momentum, for an update that transforms the sum before it adds it."""
    return three(_AddSteps.apply(False, keep, *steps, *NONE, *NONE, *momentum)[6:])


class _AddSteps(torch.autograd.Function):
    """The update with its backward pass; groups that are absent are three times None."""

    @staticmethod
    def forward(
        ctx: Any, prenorm: bool, keep: Tensor | None, *tensors: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        steps, before, norms, momentum = (_group(tensors[i : i + 3]) for i in range(0, 12, 3))
        keep = None if keep is None else keep.contiguous()
        weights = _empty(before)
        main = _empty(before) if prenorm else NONE
        summed = _empty(momentum)
        _launch(_add_kernel, steps, keep, steps, before, norms, momentum, weights, main, summed)
        kept = steps if keep is None else summed
        ctx.save_for_backward(keep, *kept, *before, *norms, *momentum)
        ctx.set_materialize_grads(False)
        return *weights, *main, *summed

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        keep, *tensors = ctx.saved_tensors
        added, before, norms, momentum = (tensors[i : i + 3] for i in range(0, 12, 3))
        of_weights, of_main, of_summed = (_group(grads[i : i + 3], added) for i in range(0, 9, 3))
        if before[0] is not None and of_weights[0] is None:
            of_weights = [torch.zeros_like(b) for b in before]
        of_before, of_norms = _empty(before), _empty(norms)
        of_steps = _empty(added) if keep is not None else NONE
        of_momentum = _empty(momentum)
        of_keep = None
        if keep is not None:
            of_keep = keep.new_empty(keep.numel(), 3, _blocks(added))
        _launch(
            _add_backward_kernel, added, keep, added, before, norms, momentum,
            of_weights, of_main, of_summed, of_before, of_norms, of_steps, of_momentum, of_keep,
        )  # fmt: skip
        if of_keep is not None:
            of_keep = of_keep.sum((1, 2)).view_as(keep)
        of_steps = of_before if keep is None else of_steps
        return None, of_keep, *of_steps, *of_before, *of_norms, *of_momentum


def _group(tensors: Sequence[Tensor | None], likes: Sequence[Tensor] | None = None) -> Group:
    """Return three contiguous tensors, zeros for those that are missing, or NONE if all are."""
    if all(t is None for t in tensors):
        return NONE
    likes = likes or [t for t in tensors if t is not None]
    pairs = zip(tensors, likes, strict=True)
    return [torch.zeros_like(like) if t is None else t.contiguous() for t, like in pairs]


def _empty(likes: Group) -> Group:
    """Return uninitialised tensors like those of a group, or NONE."""
    return [torch.empty_like(x) for x in likes if x is not None] or NONE


def _tile(steps: Group) -> tuple[int, int, int, int]:
    """Return F, D, the rows of a program and the power of two that covers a row."""
    assert steps[0] is not None
    F, D = steps[0].shape[-2:]
    width = triton.next_power_of_2(max(F, D))
    return F, D, max(1, ELEMENTS // width), width


def _blocks(steps: Group) -> int:
    """Return how many programs cover the rows of one matrix."""
    F, D, rows, _ = _tile(steps)
    blocks: int = triton.cdiv(max(F, D), rows)
    return blocks


def _launch(kernel: Any, steps: Group, keep: Tensor | None, *groups: Any) -> None:
    """Launch one program for every few rows of every matrix of every memory."""
    F, D, rows, width = _tile(steps)
    assert steps[0] is not None
    memories = steps[0].numel() // (F * D)
    if memories:
        groups = tuple(tuple(g) if isinstance(g, list | tuple) else g for g in groups)
        kernel[(_blocks(steps), 3, memories)](
            keep, *groups, F=F, D=D, EPS=NORM_EPS, ROWS=rows, WIDTH=width, num_warps=4
        )


@triton.jit
def _at(R, C, ROWS: tl.constexpr, WIDTH: tl.constexpr):
    """Return offsets of the program's rows of [memories, R, C] and elements, and which exist."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, WIDTH)
    row_at = tl.program_id(2).to(tl.int64) * R + row
    ok = (row < R)[:, None] & (column < C)[None, :]
    return row_at, row < R, row_at[:, None] * C + column[None, :], ok


@triton.jit
def _add_kernel(
    keep, steps, before, norms, momentum, weights, main, summed,
    F: tl.constexpr, D: tl.constexpr, EPS: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """Update a few rows of one matrix of one memory."""
    for i in tl.static_range(3):
        if tl.program_id(1) == i:
            R: tl.constexpr = D if i == 1 else F
            row_at, row_ok, at, ok = _at(R, D + F - R, ROWS, WIDTH)
            u = tl.load(steps[i] + at, mask=ok, other=0.0)
            if keep is not None:
                stays = tl.load(keep + tl.program_id(2))
                u += stays * tl.load(momentum[i] + at, mask=ok, other=0.0)
                tl.store(summed[i] + at, u, mask=ok)
            if before[i] is not None:
                u += tl.load(before[i] + at, mask=ok, other=0.0)
                if main[i] is not None:
                    tl.store(main[i] + at, u, mask=ok)
                size = tl.sqrt(tl.sum(u * u, axis=1))
                ratio = tl.load(norms[i] + row_at, mask=row_ok, other=0.0) / (size + EPS)
                tl.store(weights[i] + at, u * ratio[:, None], mask=ok)


@triton.jit
def _add_backward_kernel(
    keep, added, before, norms, momentum, of_weights, of_main, of_summed,
    of_before, of_norms, of_steps, of_momentum, of_keep,
    F: tl.constexpr, D: tl.constexpr, EPS: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """Compute the gradients of a few rows of one matrix of one memory."""
    for i in tl.static_range(3):
        if tl.program_id(1) == i:
            R: tl.constexpr = D if i == 1 else F
            row_at, row_ok, at, ok = _at(R, D + F - R, ROWS, WIDTH)
            du = tl.zeros([ROWS, WIDTH], dtype=tl.float32)
            if before[i] is not None:
                u = tl.load(added[i] + at, mask=ok, other=0.0)
                u += tl.load(before[i] + at, mask=ok, other=0.0)
                g = tl.load(of_weights[i] + at, mask=ok, other=0.0)
                size = tl.sqrt(tl.sum(u * u, axis=1))
                along = tl.sum(g * u, axis=1) / (size + EPS)
                tl.store(of_norms[i] + row_at, along, mask=row_ok)
                ratio = tl.load(norms[i] + row_at, mask=row_ok, other=0.0) / (size + EPS)
                shrink = along / tl.where(size > 0, size, 1.0)  # for a row of zeros, along is 0
                du = ratio[:, None] * (g - u * shrink[:, None])
                if of_main[i] is not None:
                    du += tl.load(of_main[i] + at, mask=ok, other=0.0)
                tl.store(of_before[i] + at, du, mask=ok)
            if keep is not None:
                if of_summed[i] is not None:
                    du += tl.load(of_summed[i] + at, mask=ok, other=0.0)
                tl.store(of_steps[i] + at, du, mask=ok)
                memory, blocks = tl.program_id(2), tl.num_programs(0)
                tl.store(of_momentum[i] + at, du * tl.load(keep + memory), mask=ok)
                share = tl.sum(du * tl.load(momentum[i] + at, mask=ok, other=0.0))
                tl.store(of_keep + (memory * 3 + i) * blocks + tl.program_id(0), share)
