"""Rewards from the document's rows, which are read in place, and then advantages by group."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from refine_server.kernels.rollout_reward import EPS, Reward
from refine_server.kernels.triton_support import check_dtype

COSINE_EPS = tl.constexpr(1e-8)
"""The smallest norm of a row that is divided by, as in torch's cosine_similarity."""


def rollout_reward(
    kind: Reward,
    tokens: Tensor,
    hidden: Tensor,
    document_tokens: Tensor,
    document_hidden: Tensor,
    starts: Tensor,
) -> tuple[Tensor, Tensor]:
    """Compute ``naive.rollout_reward`` in two launches; same arguments, same results."""
    check_dtype(hidden, document_hidden)
    N, k, D = hidden.shape
    R, T = document_tokens.shape
    rewards, advantages = torch.empty(2, N, device=hidden.device).unbind()
    if N == 0:
        return rewards, advantages
    _reward_kernel[(N,)](
        tokens.contiguous(),
        hidden.detach().contiguous(),
        document_tokens.contiguous(),
        document_hidden.detach().contiguous(),
        starts.contiguous(),
        rewards,
        T,
        N // R,
        N // starts.numel(),
        K=k,
        D=D,
        EXACT=kind != "cosine",
        COSINE=kind != "exact",
        BLOCK_D=min(1024, triton.next_power_of_2(D)),
    )
    n = N // starts.numel()
    group = n if n > 1 else N
    _advantage_kernel[(N // group,)](
        rewards, advantages, group, EPS=EPS, BLOCK=triton.next_power_of_2(group)
    )
    return rewards, advantages


@triton.jit(do_not_specialize=["T", "per_row", "n"])
def _reward_kernel(
    tokens, hidden, document_tokens, document_hidden, starts, rewards, T, per_row, n,
    K: tl.constexpr, D: tl.constexpr, EXACT: tl.constexpr, COSINE: tl.constexpr,
    BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Score one rollout."""
    rollout = tl.program_id(0)
    first = (rollout // per_row) * T + tl.load(starts + rollout // n)  # row of the document's [R T]
    total = 0.0
    for j in range(K):
        if EXACT:
            mine, own = tl.load(tokens + rollout * K + j), tl.load(document_tokens + first + j)
            total += tl.where(mine == own, 1.0, 0.0)
        if COSINE:
            xy = tl.zeros([BLOCK_D], dtype=tl.float32)
            xx = tl.zeros([BLOCK_D], dtype=tl.float32)
            yy = tl.zeros([BLOCK_D], dtype=tl.float32)
            for d in range(0, D, BLOCK_D):
                at = d + tl.arange(0, BLOCK_D)
                x = tl.load(hidden + (rollout * K + j) * D + at, mask=at < D, other=0.0)
                y = tl.load(document_hidden + (first + j) * D + at, mask=at < D, other=0.0)
                x, y = x.to(tl.float32), y.to(tl.float32)
                xy, xx, yy = xy + x * y, xx + x * x, yy + y * y
            norms = tl.maximum(tl.sqrt(tl.sum(xx)), COSINE_EPS)
            norms *= tl.maximum(tl.sqrt(tl.sum(yy)), COSINE_EPS)
            total += tl.sum(xy) / norms
    tl.store(rewards + rollout, total / K)


@triton.jit(do_not_specialize=["size"])
def _advantage_kernel(rewards, advantages, size, EPS: tl.constexpr, BLOCK: tl.constexpr):
    """Normalise the rewards of one group."""
    lane = tl.arange(0, BLOCK)
    at = tl.program_id(0) * size + lane
    inside = lane < size
    r = tl.load(rewards + at, mask=inside, other=0.0)
    centred = tl.where(inside, r - tl.sum(r) / size, 0.0)
    std = tl.sqrt(tl.sum(centred * centred) / tl.maximum(size - 1, 1))
    advantage = tl.where(std <= EPS, 0.0, centred / (std + EPS))
    tl.store(advantages + at, advantage, mask=inside)
