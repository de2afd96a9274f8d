"""Group-relative advantages (GRPO, arXiv 2402.03300; arXiv 2602.16704, section 3.4)."""

from torch import Tensor

EPS = 1e-6


def group_advantages(rewards: Tensor, rollouts: int) -> Tensor:
    """(r - mean(group)) / (std(group) + eps), zero where a group has no variance.

    Args:
        rewards: [N] = [positions * rollouts], rollouts of one position side by side.
        rollouts: n. With n > 1 a group is the rollouts of one position; with n = 1 it is all
            positions of the document, as in the paper's code.

    Returns:
        [N].
    """
    groups = rewards.view(-1, rollouts) if rollouts > 1 else rewards.view(1, -1)
    if groups.shape[1] == 1:
        return rewards.new_zeros(rewards.shape)
    centred = groups - groups.mean(-1, keepdim=True)
    std = groups.std(-1, keepdim=True)
    advantages = centred / (std + EPS)
    return advantages.masked_fill(std <= EPS, 0.0).view(-1)
