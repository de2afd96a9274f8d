"""Rewards and advantages in Triton equal the definition's, and values computed by hand."""

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

from refine_server.kernels.rollout_reward import naive
from refine_server.kernels.rollout_reward import triton_impl as form

pytestmark = pytest.mark.usefixtures("nan_scratch")


def inputs(R: int, G: int, n: int, k: int, D: int, dtype: torch.dtype) -> tuple[Tensor, ...]:
    T, N = 63, R * G * n
    document = torch.randint(0, 3, (R, T))
    starts = torch.randint(1, T - k + 1, (R, G))
    tokens, hidden = torch.randint(0, 3, (N, k)), torch.randn(N, k, D).to(dtype)
    return tokens, hidden, document, torch.randn(R, T, D).to(dtype), starts


@pytest.mark.parametrize("kind", ["exact", "cosine", "hybrid"])
@pytest.mark.parametrize(
    ("R", "G", "n", "k", "D"),
    [(1, 1, 1, 1, 1), (2, 3, 2, 5, 63), (1, 4, 1, 5, 257), (1, 7, 3, 2, 1100), (2, 0, 1, 5, 8)],
)
def test_rewards_and_advantages(
    kind: str, R: int, G: int, n: int, k: int, D: int, dtype: torch.dtype
) -> None:
    tokens, hidden, document, document_hidden, starts = inputs(R, G, n, k, D, dtype)
    # The definition runs in fp32, too: a spread of rounding errors must count as zero.
    args = tokens, hidden.float(), document, document_hidden.float(), starts
    for a, b in zip(
        naive.rollout_reward(kind, *args),
        form.rollout_reward(kind, tokens, hidden, document, document_hidden, starts),
        strict=True,
    ):
        torch.testing.assert_close(b, a, atol=3e-5, rtol=1e-5)


def test_equal_rewards_have_zero_advantage() -> None:
    _, hidden, document, document_hidden, starts = inputs(1, 2, 3, 5, 8, torch.float32)
    own = document[0][starts[0][:, None] + torch.arange(5)].repeat_interleave(3, 0)
    rewards, advantages = form.rollout_reward(
        "exact", own, hidden, document, document_hidden, starts
    )
    assert rewards.tolist() == [1.0] * 6
    assert advantages.tolist() == [0.0] * 6


def test_nan_stays_within_its_group() -> None:
    tokens, hidden, document, document_hidden, starts = inputs(2, 2, 2, 3, 8, torch.float32)
    clean = form.rollout_reward("cosine", tokens, hidden, document, document_hidden, starts)
    hidden[3] = float("nan")
    spoilt = form.rollout_reward("cosine", tokens, hidden, document, document_hidden, starts)
    assert spoilt[0][3].isnan()
    assert torch.equal(spoilt[0][[0, 1, 2, 4, 5, 6, 7]], clean[0][[0, 1, 2, 4, 5, 6, 7]])
    assert torch.equal(spoilt[1][[0, 1, 4, 5, 6, 7]], clean[1][[0, 1, 4, 5, 6, 7]])


def test_rewards_by_hand() -> None:
    tokens = torch.tensor([[1, 2, 3, 4], [1, 9, 9, 4]])
    document = torch.tensor([[1, 2, 3, 5], [1, 9, 9, 4]])
    hidden = torch.tensor([[[1.0, 0.0]] * 4, [[0.0, 2.0]] * 4])
    document_hidden = torch.tensor([[[1.0, 0.0]] * 4, [[1.0, 0.0]] * 4])

    def reward(kind: str) -> list[float]:
        return naive.rewards(kind, tokens, document, hidden, document_hidden).tolist()

    assert reward("exact") == [0.75, 1.0]
    assert reward("cosine") == [1.0, 0.0]
    assert reward("hybrid") == [1.75, 1.0]


def test_advantages_are_normalised_in_their_group() -> None:
    r = torch.tensor([0.0, 1.0, 5.0, 5.0])
    by_position = naive.group_advantages(r, 2)
    half = 0.5**0.5
    torch.testing.assert_close(by_position, torch.tensor([-half, half, 0, 0]), atol=1e-5, rtol=0)
    by_document = naive.group_advantages(r, 1)
    torch.testing.assert_close(by_document, (r - r.mean()) / r.std(), atol=1e-5, rtol=0)
    assert naive.group_advantages(torch.tensor([3.0]), 1).tolist() == [0.0]
