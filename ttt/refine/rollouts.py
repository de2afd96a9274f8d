"""Rollouts: what the policy would have written at the selected positions."""

from dataclasses import dataclass

import torch
from torch import Tensor

from refine_server.ttt.fast_weights import FastWeights
from refine_server.ttt.models.base import CausalLM
from refine_server.ttt.models.state import State


@dataclass(frozen=True)
class Rollouts:
    """N sampled continuations of k tokens.

    tokens: [N, k]. old_log_prob: [N, k], under the policy that sampled them, at its temperature.
    """

    tokens: Tensor
    old_log_prob: Tensor


@torch.no_grad()
def sample(
    model: CausalLM,
    before: Tensor,
    state: State,
    fast: FastWeights,
    noise: Tensor,
    temperature: float,
) -> Rollouts:
    """Continue N prefixes by k tokens.

    Args:
        before: [N, D], hidden state of the last prefix token.
        state: of N rows, after that token.
        noise: [N, k] uniform in [0, 1): one number decides one token, so the same noise gives the
            same rollout in any batch.
        temperature: tau.
    """
    tokens: list[Tensor] = []
    log_probs: list[Tensor] = []
    for j in range(noise.shape[1]):
        if j > 0:
            output = model(tokens[-1][:, None], state, fast)
            before, state = output.hidden[:, 0], output.state
        wide = torch.promote_types(before.dtype, torch.float32)
        logits = model.head_logits(before, fast).to(wide)
        log_prob = (logits / temperature).log_softmax(-1)  # [N, V]
        tokens.append(_pick(log_prob.exp(), noise[:, j, None]))
        log_probs.append(log_prob.gather(-1, tokens[-1][:, None])[:, 0])
    return Rollouts(torch.stack(tokens, dim=1), torch.stack(log_probs, dim=1))


def beside(rollouts: Tensor, demonstrations: Tensor) -> Tensor:
    """Each position's rollouts [P n, k], then its demonstration [P, k]: [P (n + 1), k]."""
    groups = rollouts.unflatten(0, (demonstrations.shape[0], -1))
    return torch.cat([groups, demonstrations[:, None]], dim=1).flatten(0, 1)


def _pick(p: Tensor, noise: Tensor) -> Tensor:
    """Invert the cumulative distribution: p [N, V], noise [N, 1] -> [N].

    In fp64: a vocabulary's probabilities are so small that the rounding of an fp32 sum would choose
    another token in another batch.
    """
    cumulative = p.double().cumsum(-1)
    target = noise.to(p.dtype) * cumulative[:, -1:]
    return torch.searchsorted(cumulative, target, right=True)[:, 0].clamp_max(p.shape[1] - 1)
