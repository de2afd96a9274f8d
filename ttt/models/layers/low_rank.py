"""Low-rank updates of projections (LoRA, arXiv 2106.09685): made, and added to an output."""

from collections.abc import Mapping

import torch
from torch import Tensor

from refine_server.ttt.fast_weights import FastWeights


def new_low_rank_updates(
    widths: Mapping[str, tuple[int, int]], rank: int, seed: int, like: Tensor
) -> dict[str, Tensor]:
    """Make one request's low-rank updates, which change nothing yet.

    Args:
        widths: by name, how many channels an update reads and how many it is added to.
        rank: rank of the updates, or the smaller width where that is less.
        seed: random seed of A.
        like: a tensor of the type and on the device of the model; an update is at least fp32.

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
    """Add the requests' update ``name`` of x [N, T, in], if they own one, to y [N, T, out].

    It changes a part of what a projection computes; an update of its weight would change all.
    """
    a = fast.get(f"{name}.lora_a")
    if a is None:
        return y
    a, b = a.to(x.dtype), fast[f"{name}.lora_b"].to(x.dtype)
    update = x.reshape(a.shape[0], -1, x.shape[-1]) @ a @ b  # [R, N / R T, out]
    return y + update.view(y.shape)
