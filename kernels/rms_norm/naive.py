"""Norms as their formulas, with autograd's backward pass: the definition of the ops."""

import torch
from torch import Tensor


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Compute x / sqrt(mean(x²) + eps) over the last dimension, times weight.

    Args:
        x: [..., D]. The norm is computed in at least fp32, and rounded before the product.
        weight: [D], or any shape that broadcasts with x.

    Returns:
        [..., D] in x's dtype.
    """
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    normed = wide * (wide.square().mean(-1, keepdim=True) + eps).rsqrt()
    return normed.to(x.dtype) * weight


def l2_norm(x: Tensor, eps: float) -> Tensor:
    """Compute x [..., D] / sqrt(sum(x²) + eps) over the last dimension, in x's dtype."""
    return x * (x.square().sum(-1, keepdim=True) + eps).rsqrt()
