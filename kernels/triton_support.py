"""What the Triton forms share. Imported by them alone: importing it imports Triton."""

import torch
import triton
import triton.language as tl

INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)

PROGRAMS = 132
"""Streaming multiprocessors of an H100: a grid with fewer programs leaves some idle."""

LOWEST = tl.constexpr(-1e30)
"""Below every finite score. Finite, so that differences of two of them are no NaN."""


@triton.jit
def dot(a, b, acc, PRECISION: tl.constexpr = "tf32x3"):
    """acc + a @ b, accumulated in fp32.

    fp32 operands go through the tensor cores in three tf32 terms, which is nearly exact, or in one.
    """
    if INTERPRETED:  # its bf16 arithmetic is silently wrong
        a = a.to(tl.float32)
        b = b.to(tl.float32)
    return tl.dot(a, b, acc, input_precision=PRECISION)


def check_dtype(*tensors: torch.Tensor) -> None:
    """Refuse what the Triton forms do not compute in."""
    for tensor in tensors:
        if tensor.dtype not in (torch.float32, torch.bfloat16, torch.float16):
            raise TypeError(
                f"Triton forms take fp32, bf16 and fp16, not {tensor.dtype}; "
                "REFINE_KERNELS=torch computes in it"
            )
