"""Smooth the scores, add noise and take the largest: the definition of the op."""

import torch
from torch import Tensor

from refine_server.kernels.select_positions import Rule, smooth


def select_positions(
    scores: Tensor, noise: Tensor | None, *, chunks: int, kernel: int, rule: Rule
) -> Tensor:
    """Choose one index in each of ``chunks`` equal chunks of every row.

    Args:
        scores: [R, T], T >= chunks.
        noise: [R, chunks, T // chunks], uniform in [0, 1); ``sample`` and ``uniform`` need it. It
            is the only source of randomness: the same noise gives the same positions in every form.
        chunks: c; each chunk has T // c tokens, and the rest of the row is never chosen.
        kernel: the width of the average pool over the scores, in tokens.
        rule: ``sample`` draws from the softmax of the smoothed scores by the Gumbel-max trick,
            ``uniform`` draws evenly; ``argmax`` and ``argmin`` take the extreme of the smoothed
            scores, the first of equal ones.

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
