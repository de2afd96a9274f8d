"""Low-rank deltas (LoRA, arXiv 2106.09685): how a request's are made, and one beside a module."""

from collections.abc import Mapping

import torch
from torch import Tensor

from refine_server.ttt.fast_weights import FastWeights


def new_low_rank_deltas(
    widths: Mapping[str, tuple[int, int]], rank: int, seed: int, like: Tensor
) -> dict[str, Tensor]:
    """Make one request's LoRA, which changes nothing yet.

    Args:
        widths: by name, how many channels a delta reads and how many it is added to.
        rank: of the deltas, or the smaller width where that is less.
        seed: of A.
        like: a tensor of the type and on the device of the model; a delta is at least fp32.

    Returns:
        ``<name>.lora_a`` [1, in, rank], random, and ``<name>.lora_b`` [1, rank, out], zero.
    """
    generator = torch.Generator().manual_seed(seed)
    dtype = torch.promote_types(like.dtype, torch.float32)
    tensors = {}
    for name, (width, out) in widths.items():
        size = min(rank, width, out)
        a = torch.randn(1, width, size, generator=generator) * width**-0.5
        tensors[f"{name}.lora_a"] = a.to(like.device, dtype)
        tensors[f"{name}.lora_b"] = torch.zeros(1, size, out, device=like.device, dtype=dtype)
    return tensors


def add_low_rank(y: Tensor, x: Tensor, fast: FastWeights, name: str) -> Tensor:
    """Add the requests' delta ``name`` of x [N, T, in], if they own one, to y [N, T, out].

    It changes a part of what a projection computes, where a delta of the module would change all.
    """
    a = fast.get(f"{name}.lora_a")
    if a is None:
        return y
    a, b = a.to(x.dtype), fast[f"{name}.lora_b"].to(x.dtype)
    delta = x.reshape(a.shape[0], -1, x.shape[-1]) @ a @ b  # [R, N / R T, out]
    return y + delta.view(y.shape)
