"""Short causal convolution by torch's conv1d: the definition of the op."""

import torch
import torch.nn.functional as F
from torch import Tensor


def short_conv(x: Tensor, weight: Tensor, past: Tensor) -> Tensor:
    """y[t] = sum over i of weight[:, i] * x[t - (W - 1) + i].

    Args:
        x: [B, T, C].
        weight: [C, W] taps, oldest first; [B, C, W] when every row has its own.
        past: [B, W - 1, C], the inputs just before x (zeros at the start of a sequence).

    Returns:
        [B, T, C].
    """
    padded = torch.cat([past, x], dim=1).mT  # [B, C, W - 1 + T]
    if weight.ndim == 3:
        rows = [
            F.conv1d(p, w[:, None], groups=w.shape[0]) for p, w in zip(padded, weight, strict=True)
        ]
        return torch.stack(rows).mT
    return F.conv1d(padded, weight[:, None], groups=weight.shape[0]).mT
