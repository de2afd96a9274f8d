"""Rewards and group-relative advantages of rollouts: the definition of the op."""

import torch
import torch.nn.functional as F
from torch import Tensor

from refine_server.kernels.rollout_reward import EPS, Reward


def rollout_reward(
    kind: Reward,
    tokens: Tensor,
    hidden: Tensor,
    document_tokens: Tensor,
    document_hidden: Tensor,
    starts: Tensor,
) -> tuple[Tensor, Tensor]:
    """Score every rollout against the k tokens that the document has in its place.

    Args:
        kind: ``exact`` is the mean of [token equal], ``cosine`` the mean cosine of hidden states,
            ``hybrid`` their sum (arXiv 2602.16704, section 3.3).
        tokens, hidden: [N, k] and [N, k, D] of the rollouts, N = R G n: the n rollouts of one
            position are adjacent, and so are the G positions of one row.
        document_tokens, document_hidden: [R, T] and [R, T, D].
        starts: [R, G], the position at which each position's rollouts begin; start + k <= T.

    Returns:
        Rewards and advantages, [N] each, in fp32, without a graph.
    """
    k, n = tokens.shape[1], tokens.shape[0] // max(starts.numel(), 1)
    row = torch.arange(starts.shape[0], device=starts.device)[:, None, None]
    at = starts[..., None] + torch.arange(k, device=starts.device)  # [R, G, k]
    own_tokens = document_tokens[row, at].flatten(0, 1).repeat_interleave(n, 0)  # [N, k]
    own_hidden = document_hidden.detach()[row, at].flatten(0, 1).repeat_interleave(n, 0)
    reward = rewards(kind, tokens, own_tokens, hidden, own_hidden)
    return reward, group_advantages(reward, n)


def rewards(
    kind: Reward,
    tokens: Tensor,
    document_tokens: Tensor,
    hidden: Tensor,
    document_hidden: Tensor,
) -> Tensor:
    """Compare tokens [N, k] and hidden [N, k, D] with the document's: a reward [N] for each."""
    exact = (tokens == document_tokens).float().mean(-1)
    if kind == "exact":
        return exact
    cosine = F.cosine_similarity(hidden.detach().float(), document_hidden.detach().float(), dim=-1)
    return cosine.mean(-1) + (exact if kind == "hybrid" else 0.0)


def group_advantages(rewards: Tensor, rollouts: int) -> Tensor:
    """Compute (r - mean(group)) / (std(group) + eps), zero where a group has no variance.

    These are GRPO's group-relative advantages (arXiv 2402.03300; arXiv 2602.16704, section 3.4).

    Args:
        rewards: [N] = [positions * rollouts], the rollouts of one position adjacent.
        rollouts: n. With n > 1 a group is the rollouts of one position; with n = 1 it is all
            positions of the document, as in the paper's code.

    Returns:
        [N].
    """
    groups = rewards.view(-1, rollouts) if rollouts > 1 else rewards.view(1, -1)
    if groups.shape[1] <= 1:
        return rewards.new_zeros(rewards.shape)
    centred = groups - groups.mean(-1, keepdim=True)
    std = groups.std(-1, keepdim=True)
    advantages = centred / (std + EPS)
    return advantages.masked_fill(std <= EPS, 0.0).view(-1)
