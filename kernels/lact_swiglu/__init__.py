"""The ops of a LaCT layer (arXiv 2505.23884): read a SwiGLU memory, and write a chunk to it.

The memory of a (request, head) is an MLP, f(x) = w1 (silu(w0 x) * (w2 x)). Within a chunk every
query is read from the memory as it was before the chunk; then one gradient, summed over the chunk's
keys, rewrites it. Reading and writing are separate ops because they happen at different times: a
chunk is read as its tokens come, and written when the first token after it arrives. A write is two
ops, the gradient and the update that it leads to.
"""

from collections.abc import Iterable
from typing import NamedTuple

from torch import Tensor

NORM_EPS = 1e-5
"""lact_llm's, added to the norm of a row."""

MUON_EPS = 1e-7
"""lact_llm's, added to the norm of a matrix before its first step."""

MUON_COEFFICIENTS = (
    (4.0848, -6.8946, 2.9270),
    (3.9505, -6.3029, 2.6377),
    (3.7418, -5.5913, 2.3037),
    (2.8769, -3.1427, 1.2046),
    (2.8366, -3.0525, 1.2012),
)
"""lact_llm's five steps of Newton and Schulz."""

Weights = tuple[Tensor, Tensor, Tensor]
"""w0 [B, H, F, D], w1 [B, H, D, F], w2 [B, H, F, D], at least fp32."""


class Update(NamedTuple):
    """What a chunk makes of the memory.

    weights: rescaled, to be read. main: the same before rescaling, None unless the rule is prenorm.
    momentum: None without momentum.
    """

    weights: Weights
    main: Weights | None
    momentum: Weights | None


def three(tensors: Iterable[Tensor]) -> Weights:
    """Exactly three tensors."""
    first, second, third = tensors
    return first, second, third
