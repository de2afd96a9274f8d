"""Positions by smoothing, adding noise and taking the largest: the definition of the op."""

import torch
from torch import Tensor

from refine_server.kernels.select_positions import Rule, smooth


def select_positions(
    scores: Tensor, noise: Tensor | None, *, chunks: int, kernel: int, rule: Rule
) -> Tensor:
    """One index in each of ``chunks`` equal chunks of every row.

    Args:
        scores: [R, T], T >= chunks.
        noise: [R, chunks, T // chunks] uniform in [0, 1), needed by ``sample`` and ``uniform``. It
            decides alone: the same noise gives the same positions in every form.
        chunks: c; each chunk has T // c tokens, and the rest of the row is never chosen.
        kernel: of the average pool over scores.
        rule: ``sample`` draws from the softmax of the smoothed scores (the Gumbel-max way),
            ``uniform`` evenly; ``argmax`` and ``argmin`` take the extreme of the smoothed scores,
            the first one where several are equal.

    Returns:
        [R, chunks] indices into T, rising within a row.
    """
    R, T = scores.shape
    size = T // chunks
    keys = smooth(scores, kernel)[:, : chunks * size].view(R, chunks, size).float()
    if rule == "argmin":
        keys = -keys
    elif noise is not None and rule != "argmax":
        gumbel = -(-noise.clamp_min(1e-20).log()).log()
        keys = gumbel if rule == "uniform" else keys + gumbel
    return keys.argmax(-1) + size * torch.arange(chunks, device=keys.device)
