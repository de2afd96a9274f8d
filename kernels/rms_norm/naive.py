"""Norms by what they are: the definition of the ops, with autograd's own backward pass."""

import torch
from torch import Tensor


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x / sqrt(mean(x²) + eps) over the last dimension, times weight.

    Args:
        x: [..., D]. The norm is computed in at least fp32, and rounded before the product.
        weight: [D], or of any shape that goes with x.

    Returns:
        [..., D], of x's dtype.
    """
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    normed = wide * (wide.square().mean(-1, keepdim=True) + eps).rsqrt()
    return normed.to(x.dtype) * weight


def l2_norm(x: Tensor, eps: float) -> Tensor:
    """x [..., D] / sqrt(sum(x²) + eps) over the last dimension, in x's dtype."""
    return x * (x.square().sum(-1, keepdim=True) + eps).rsqrt()
