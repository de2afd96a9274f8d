"""Smoothing, noise and search in one launch; a program reads one chunk of one row once."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from refine_server.kernels.select_positions import Rule
from refine_server.kernels.triton_support import check_dtype

BLOCK = 1024


def select_positions(
    scores: Tensor, noise: Tensor | None, *, chunks: int, kernel: int, rule: Rule
) -> Tensor:
    """Compute ``naive.select_positions`` in one launch; same arguments, same results."""
    check_dtype(scores)
    R, T = scores.shape
    size = T // chunks
    index = torch.empty(R, chunks, dtype=torch.int64, device=scores.device)
    noisy = noise is not None and rule in ("sample", "uniform")
    if index.numel():
        _select_kernel[(R, chunks)](
            scores.contiguous(),
            noise.contiguous() if noisy and noise is not None else scores,
            index,
            T,
            size,
            SIGN={"sample": 1.0, "uniform": 0.0, "argmax": 1.0, "argmin": -1.0}[rule],
            NOISY=noisy,
            RADIUS=kernel // 2,
            BLOCK=min(BLOCK, triton.next_power_of_2(size)),
        )
    return index


@triton.jit(do_not_specialize=["T", "size"])
def _select_kernel(
    scores, noise, index, T, size,
    SIGN: tl.constexpr, NOISY: tl.constexpr, RADIUS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Find the best position of one chunk of one row."""
    row, chunk, chunks = tl.program_id(0), tl.program_id(1), tl.num_programs(1)
    top = float("-inf")
    best = 0
    for start in range(0, size, BLOCK):
        offset = start + tl.arange(0, BLOCK)
        inside = offset < size
        key = tl.zeros([BLOCK], dtype=tl.float32)
        if SIGN != 0:
            for shift in range(-RADIUS, RADIUS + 1):
                at = chunk * size + offset + shift
                ok = inside & (at >= 0) & (at < T)
                key += tl.load(scores + row * T + at, mask=ok, other=0.0).to(tl.float32)
            key = key * (SIGN / (2 * RADIUS + 1))
        if NOISY:
            u = tl.load(noise + (row * chunks + chunk) * size + offset, mask=inside, other=0.5)
            key += -tl.log(-tl.log(tl.maximum(u.to(tl.float32), 1e-20)))
        key = tl.where(inside & (key == key), key, float("-inf"))  # NaN must not be chosen
        value, at = tl.max(key, axis=0, return_indices=True)
        best = tl.where(value > top, start + at, best)
        top = tl.maximum(value, top)
    tl.store(index + row * chunks + chunk, (chunk * size + best).to(tl.int64))
