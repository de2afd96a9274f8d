"""Norms as their formulas, with autograd's backward pass: the definition of the ops."""

import torch
from torch import Tensor


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Compute x / sqrt(mean(x²) + eps) over the last dimension, times weight.

    Args:
        x: [..., D]. The norm is computed in at least fp32, and rounded to the weight's dtype before
            the product.
        weight: [D], or any shape that broadcasts with x; in x's dtype or a wider one.

    Returns:
        [..., D] in x's dtype.
    """
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    normed = wide * (wide.square().mean(-1, keepdim=True) + eps).rsqrt()
    return (normed.to(weight.dtype) * weight).to(x.dtype)


def l2_norm(x: Tensor, eps: float) -> Tensor:
    """Compute x [..., D] / sqrt(sum(x²) + eps) over the last dimension, in at least fp32.

    Returns [..., D] in x's dtype.
    """
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    return (wide * (wide.square().sum(-1, keepdim=True) + eps).rsqrt()).to(x.dtype)
