"""The ops of a LaCT layer (arXiv 2505.23884): read a SwiGLU memory, and write a chunk to it.

The memory of one head of one request is an MLP, f(x) = w1 (silu(w0 x) * (w2 x)), whose weights are
the fast weights. The queries of a chunk read the memory as it was before the chunk; then one
gradient, summed over the chunk's keys, updates it. Reading and writing are separate ops because
they happen at different times: a chunk is read as its tokens come, and written when the first token
after it arrives. A write is two ops, the gradient and the update.
"""

from collections.abc import Iterable
from typing import NamedTuple

from torch import Tensor

NORM_EPS = 1e-5
"""Added to the norm of a row, as in lact_llm."""

MUON_EPS = 1e-7
"""Added to the norm of a matrix before Muon's first iteration, as in lact_llm."""

MUON_COEFFICIENTS = (
    (4.0848, -6.8946, 2.9270),
    (3.9505, -6.3029, 2.6377),
    (3.7418, -5.5913, 2.3037),
    (2.8769, -3.1427, 1.2046),
    (2.8366, -3.0525, 1.2012),
)
"""The coefficients a, b, c of Muon's five Newton-Schulz iterations, as in lact_llm."""

Weights = tuple[Tensor, Tensor, Tensor]
"""w0 [B, H, F, D], w1 [B, H, D, F], w2 [B, H, F, D], at least fp32."""


class Update(NamedTuple):
    """The memory after a chunk was written to it."""

    weights: Weights
    """The rescaled weights, which are read."""

    main: Weights | None
    """The weights before rescaling; None unless the rule is prenorm."""

    momentum: Weights | None
    """The new momentum; None without momentum."""


def three(tensors: Iterable[Tensor]) -> Weights:
    """Return the tensors as a tuple of exactly three."""
    first, second, third = tensors
    return first, second, third
