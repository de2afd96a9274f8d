"""What the Triton forms share. Only they import this module, because it imports Triton."""

import torch
import triton
import triton.language as tl

INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)

PROGRAMS = 132
"""Streaming multiprocessors of an H100: a grid with fewer programs leaves some idle."""

GRID_LIMIT = 65_535
"""Most programs along the second and the third axis of a CUDA grid."""

LOWEST = tl.constexpr(-1e30)
"""Below every score, yet finite, so that the difference of two of them is not NaN."""


@triton.jit
def dot(a, b, acc, PRECISION: tl.constexpr = "tf32x3"):
    """Compute acc + a @ b, accumulated in fp32.

    fp32 operands go through the tensor cores as three tf32 terms, which is nearly exact, or as one
    (``PRECISION="tf32"``).
    """
    if INTERPRETED:  # the interpreter's bf16 arithmetic is silently wrong
        a = a.to(tl.float32)
        b = b.to(tl.float32)
    return tl.dot(a, b, acc, input_precision=PRECISION)


@triton.jit
def to_bf16(x):
    """Round fp32 to the nearest bf16, ties to even."""
    if INTERPRETED:  # the interpreter would truncate
        bits = x.to(tl.uint32, bitcast=True)
        bits = (bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000
        x = bits.to(tl.float32, bitcast=True)
    return x.to(tl.bfloat16)


def check_dtype(*tensors: torch.Tensor) -> None:
    """Raise TypeError for a dtype that the Triton forms do not compute in."""
    for tensor in tensors:
        if tensor.dtype not in (torch.float32, torch.bfloat16, torch.float16):
            raise TypeError(
                f"Triton forms take fp32, bf16 and fp16, not {tensor.dtype}; "
                "REFINE_KERNELS=torch computes in it"
            )
