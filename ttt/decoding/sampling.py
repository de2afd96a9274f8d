"""Choose the next token from logits, and score tokens."""

import torch
from torch import Tensor

from refine_server.ttt.interface.config import SamplingConfig

TopTokens = tuple[tuple[int, float], ...]
"""Ids and log-probabilities of the most likely tokens, best first."""


def sample(logits: Tensor, sampling: SamplingConfig, generator: torch.Generator) -> int:
    """Choose one token from logits [V]: the likeliest one, or one of the top_p mass."""
    if sampling.is_greedy:
        return int(logits.argmax())
    p = (logits.float() / sampling.temperature).softmax(-1)  # [V]
    # One number of the host's generator decides, so a seed means the same on every device; all
    # else is done where the logits are.
    noise = torch.rand((), generator=generator, dtype=torch.float64).to(p.device)
    order = None
    if sampling.top_p < 1:
        p, order = p.sort(descending=True, stable=True)
    cumulative = p.double().cumsum(-1)
    if order is not None:
        inside = cumulative - p < sampling.top_p
        inside[0] = True  # the likeliest stays where top_p rounds to 0
        cumulative = cumulative.clamp_max(cumulative.where(inside, 0.0).max())
    # The first token whose cumulative probability exceeds the noise.
    chosen = torch.searchsorted(cumulative, noise * cumulative[-1:], right=True)
    chosen = chosen.clamp_max(p.shape[0] - 1)
    return int(chosen if order is None else order.gather(0, chosen))


def score(logits: Tensor, tokens: Tensor, top: int) -> list[tuple[float, TopTokens]]:
    """Return the log-probability of each token [N] under logits [N, V], and the ``top`` best."""
    wide = torch.promote_types(logits.dtype, torch.float32)
    log_probs = logits.to(wide).log_softmax(-1)  # [N, V]
    chosen = log_probs.gather(-1, tokens[:, None])[:, 0].tolist()
    best = log_probs.topk(min(top, log_probs.shape[-1]), dim=-1)
    rows = zip(best.indices.tolist(), best.values.tolist(), strict=True)
    likeliest = [tuple(zip(ids, values, strict=True)) for ids, values in rows]
    return list(zip(chosen, likeliest, strict=True))
