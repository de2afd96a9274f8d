"""The policy-gradient terms: by hand, and in Triton with their gradients."""

import pytest
import torch

pytest.importorskip("triton")

from refine_server.kernels.grpo_loss import naive
from refine_server.kernels.grpo_loss import triton_impl as form

pytestmark = pytest.mark.usefixtures("nan_scratch")


@pytest.mark.parametrize(("N", "k"), [(1, 1), (63, 5), (100, 3), (257, 9)])
@pytest.mark.parametrize("with_base", [True, False])
@pytest.mark.parametrize("masked", [True, False])
def test_outputs_and_gradients(N, k, with_base, masked, dtype, matches) -> None:
    log_prob = (-3 * torch.rand(N, k)).to(dtype)
    old, base = (log_prob.float() + 0.5 * torch.randn(N, k) for _ in range(2))
    advantages = torch.randn(N) * 2
    advantages[::7] = 0
    mask = torch.rand(N, k) < 0.6 if masked else None

    def run(loss):
        return lambda x: loss(x, old, advantages, 0.2, base if with_base else None, mask)

    matches(run(naive.grpo_loss), run(form.grpo_loss), [log_prob], scale=3)


@pytest.mark.parametrize("loss", [naive.grpo_loss, form.grpo_loss], ids=["naive", "triton"])
def test_nothing_counts(loss) -> None:
    log_prob = torch.randn(3, 2, requires_grad=True)
    terms = loss(
        log_prob, torch.randn(3, 2), torch.randn(3), 0.2, torch.randn(3, 2),
        torch.zeros(3, 2, dtype=torch.bool),
    )  # fmt: skip
    assert [float(t.detach()) for t in terms] == [0.0, 0.0]
    sum(terms).backward()
    assert not log_prob.grad.any()


@pytest.mark.parametrize("loss", [naive.grpo_loss, form.grpo_loss], ids=["naive", "triton"])
def test_tokens_that_do_not_count_may_be_anything(loss) -> None:
    log_prob, mask = torch.randn(3, 2), torch.tensor([[True, True], [True, False], [False, True]])
    args = torch.randn(3, 2), torch.randn(3), 0.2, torch.randn(3, 2), mask
    clean = loss(log_prob, *args)
    log_prob[~mask] = float("nan")
    assert [float(x) for x in loss(log_prob, *args)] == [float(x) for x in clean]


@pytest.mark.parametrize("loss", [naive.grpo_loss, form.grpo_loss], ids=["naive", "triton"])
def test_clipped_both_ways(loss) -> None:
    def at(ratio: float, advantage: float) -> float:
        new = torch.tensor([[ratio]]).log()
        return float(loss(new, torch.zeros(1, 1), torch.tensor([advantage]), 0.2)[0])

    assert at(1.0, 1.0) == pytest.approx(-1.0)
    assert at(1.5, 1.0) == pytest.approx(-1.2)  # gains beyond the trust region do not count
    assert at(0.5, 1.0) == pytest.approx(-0.5)
    assert at(0.5, -1.0) == pytest.approx(0.8)
    assert at(2.0, -1.0) == pytest.approx(2.0)
    assert at(9.0, -1.0) == pytest.approx(3.0)  # dual clip


@pytest.mark.parametrize("loss", [naive.grpo_loss, form.grpo_loss], ids=["naive", "triton"])
def test_kl_is_zero_only_where_policies_agree(loss) -> None:
    log_prob = torch.tensor([[-1.0, -2.0]])

    def kl(base: torch.Tensor) -> float:
        return float(loss(log_prob, log_prob, torch.zeros(1), 0.2, base)[1])

    assert kl(log_prob) == 0.0
    assert kl(log_prob - 1) > 0.0
    assert kl(log_prob + 1) > 0.0
