"""The gate in one launch, and one for its gradient, by flash-linear-attention's kernel.

It keeps its two inputs for the backward pass; the definition keeps SiLU(gate) as well.
"""

from fla.modules.activations.ops import swiglu as fla_swiglu
from torch import Tensor


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """Compute ``naive.swiglu``; same arguments, same results."""
    y: Tensor = fla_swiglu(gate, up)
    return y
