"""The gate of SwiGLU layers in two torch ops: the definition of the op."""

import torch.nn.functional as F
from torch import Tensor


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """Compute SiLU(gate) * up; all are [..., F]."""
    return F.silu(gate) * up
