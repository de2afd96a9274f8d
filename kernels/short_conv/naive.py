"""Short causal convolution by torch's conv1d: the definition of the op."""

import torch
import torch.nn.functional as F
from torch import Tensor


def short_conv(padded: Tensor, weight: Tensor) -> Tensor:
    """Compute y[t] = sum over i of weight[:, i] * padded[t + i].

    Args:
        padded: [B, W - 1 + T, C], the W - 1 previous inputs (zeros at the start of a sequence) and
            then the T inputs.
        weight: [C, W], the taps, oldest first; [B, C, W] when every row has its own.

    Returns:
        [B, T, C].
    """
    padded = padded.mT  # [B, C, W - 1 + T]
    if weight.ndim == 3:
        rows = [
            F.conv1d(p, w[:, None], groups=w.shape[0]) for p, w in zip(padded, weight, strict=True)
        ]
        return torch.stack(rows).mT
    return F.conv1d(padded, weight[:, None], groups=weight.shape[0]).mT


def short_conv_silu(padded: Tensor, weight: Tensor) -> Tensor:
    """Compute SiLU of ``short_conv``; same arguments."""
    return F.silu(short_conv(padded, weight))
