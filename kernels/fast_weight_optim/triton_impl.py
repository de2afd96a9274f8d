"""One step of all tensors of all requests in three launches, however many tensors there are.

The kernels find the tensors through a table of addresses. Norms are summed in a fixed order, and a
request that is inactive or not finite is skipped on the device: the host never waits for a result.
"""

import functools

import torch
import triton
import triton.language as tl
from torch import Tensor

from refine_server.kernels.fast_weight_optim import BETAS, CLIP_EPS, EPS, OptimState

TILE = 2048


@torch.no_grad()
def fast_weight_optim(
    params: list[Tensor],
    grads: list[Tensor],
    state: OptimState,
    learning_rate: Tensor,
    max_norm: Tensor,
    weight_decay: Tensor,
    active: Tensor,
) -> tuple[Tensor, Tensor]:
    """Compute ``naive.fast_weight_optim`` in three launches; same arguments, same results.

    Raises:
        TypeError: a tensor is not contiguous or not fp32.
    """
    grads = [g.contiguous() for g in grads]
    for tensor in (*params, *grads, *state.first, *state.second):
        if tensor.dtype != torch.float32 or not tensor.is_contiguous():
            raise TypeError("the Triton optimiser steps contiguous fp32 tensors")
    R, device = params[0].shape[0], params[0].device
    columns = zip(params, grads, state.first, state.second, strict=True)
    addresses = _addresses(tuple(t.data_ptr() for row in columns for t in row), device)
    tiles = _tiles(tuple(p.numel() // R for p in params), device)  # [tiles, 3]
    count = tiles.shape[0]
    partial, factors, norm = (
        torch.empty(*shape, device=device) for shape in ((R, count), (R, 4), (R,))
    )
    stepped = torch.empty(R, dtype=torch.bool, device=device)
    _norm_kernel[(count, R)](addresses, tiles, partial, TILE=TILE)
    _decide_kernel[(R,)](
        partial, count, learning_rate, max_norm, weight_decay, active, state.steps, factors, norm,
        stepped, BETA1=BETAS[0], BETA2=BETAS[1], CLIP_EPS=CLIP_EPS, BLOCK=1024,
    )  # fmt: skip
    _step_kernel[(count, R)](
        addresses, tiles, factors, stepped,
        BETA1=BETAS[0], BETA2=BETAS[1], EPS=EPS, TILE=TILE,
    )  # fmt: skip
    torch.autograd.graph.increment_version([*params, *state.first, *state.second])
    return norm, stepped


@functools.lru_cache(maxsize=64)
def _addresses(pointers: tuple[int, ...], device: torch.device) -> Tensor:
    """Return addresses of each tensor's parameter, gradient and two means: [tensors, 4]."""
    return torch.tensor(pointers, dtype=torch.int64, device=device).view(-1, 4)


@functools.lru_cache(maxsize=64)
def _tiles(sizes: tuple[int, ...], device: torch.device) -> Tensor:
    """Return the tensor's index, offset and size for each tile of one request: [tiles, 3]."""
    tiles = [(i, at, size) for i, size in enumerate(sizes) for at in range(0, size, TILE)]
    return torch.tensor(tiles, dtype=torch.int32, device=device).view(-1, 3)


@triton.jit
def _tile(addresses, tiles, TILE: tl.constexpr):
    """Return the program's row of the address table, its elements' offsets and which exist."""
    entry = tiles + tl.program_id(0) * 3
    tensor, first, size = tl.load(entry), tl.load(entry + 1), tl.load(entry + 2)
    offset = first + tl.arange(0, TILE)
    at = tl.program_id(1).to(tl.int64) * size + offset
    return addresses + tensor * 4, at, offset < size


@triton.jit
def _norm_kernel(addresses, tiles, partial, TILE: tl.constexpr):
    """Sum the squares of one tile of a request's gradient."""
    entry, at, inside = _tile(addresses, tiles, TILE)
    grad = tl.load(entry + 1).to(tl.pointer_type(tl.float32))
    g = tl.load(grad + at, mask=inside, other=0.0)
    tl.store(partial + tl.program_id(1) * tl.num_programs(0) + tl.program_id(0), tl.sum(g * g))


@triton.jit(do_not_specialize=["count"])
def _decide_kernel(
    partial, count, learning_rate, max_norm, weight_decay, active, steps, factors, norms, stepped,
    BETA1: tl.constexpr, BETA2: tl.constexpr, CLIP_EPS: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Decide whether a request steps, and what scales its gradient, means and parameters."""
    r = tl.program_id(0)
    total = tl.zeros([BLOCK], dtype=tl.float32)
    for start in range(0, count, BLOCK):
        at = start + tl.arange(0, BLOCK)
        total += tl.load(partial + r * count + at, mask=at < count, other=0.0)
    norm = tl.sqrt(tl.sum(total))
    goes = (tl.load(active + r) != 0) & (norm < float("inf"))  # NaN is not below either
    step = tl.load(steps + r) + tl.where(goes, 1, 0)
    tl.store(steps + r, step)
    step = tl.maximum(step, 1)  # of a request that never stepped
    tl.store(norms + r, norm)
    tl.store(stepped + r, goes)
    clip = tl.minimum(tl.load(max_norm + r).to(tl.float32) / (norm + CLIP_EPS), 1.0)
    # 1 - beta^step in fp64: in fp32 it loses four digits at the first steps.
    beta1, beta2 = tl.full([], BETA1, tl.float64), tl.full([], BETA2, tl.float64)
    base_rate = tl.load(learning_rate + r).to(tl.float64)
    rate = base_rate / (1 - tl.exp(tl.log(beta1) * step))
    widen = 1 / tl.sqrt(1 - tl.exp(tl.log(beta2) * step))
    keep = 1 - base_rate * tl.load(weight_decay + r)
    tl.store(factors + r * 4, clip)
    tl.store(factors + r * 4 + 1, rate.to(tl.float32))
    tl.store(factors + r * 4 + 2, widen.to(tl.float32))
    tl.store(factors + r * 4 + 3, keep.to(tl.float32))


@triton.jit
def _step_kernel(
    addresses, tiles, factors, stepped,
    BETA1: tl.constexpr, BETA2: tl.constexpr, EPS: tl.constexpr,
    TILE: tl.constexpr,
):  # fmt: skip
    """Step one tile of a request's parameters."""
    r = tl.program_id(1)
    if tl.load(stepped + r) == 0:
        return
    clip, rate = tl.load(factors + r * 4), tl.load(factors + r * 4 + 1)
    widen, keep = tl.load(factors + r * 4 + 2), tl.load(factors + r * 4 + 3)
    entry, at, inside = _tile(addresses, tiles, TILE)
    param = tl.load(entry).to(tl.pointer_type(tl.float32)) + at
    grad = tl.load(entry + 1).to(tl.pointer_type(tl.float32)) + at
    first = tl.load(entry + 2).to(tl.pointer_type(tl.float32)) + at
    second = tl.load(entry + 3).to(tl.pointer_type(tl.float32)) + at
    g = tl.load(grad, mask=inside, other=0.0) * clip
    m = BETA1 * tl.load(first, mask=inside, other=0.0) + (1 - BETA1) * g
    v = BETA2 * tl.load(second, mask=inside, other=0.0) + (1 - BETA2) * g * g
    tl.store(first, m, mask=inside)
    tl.store(second, v, mask=inside)
    update = m / (tl.sqrt(v) * widen + EPS)
    p = keep * tl.load(param, mask=inside, other=0.0)
    tl.store(param, p - rate * update, mask=inside)
