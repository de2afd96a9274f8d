"""The policy-gradient terms: values computed by hand, and Triton with gradients."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

from refine_server.kernels.grpo_loss import naive
from refine_server.kernels.grpo_loss import triton_impl as form

FORMS = pytest.mark.parametrize("loss", [naive.grpo_loss, form.grpo_loss], ids=["naive", "triton"])
Loss = Callable[..., tuple[Tensor, Tensor]]
pytestmark = pytest.mark.usefixtures("nan_scratch")


@pytest.mark.parametrize(("N", "k"), [(1, 1), (63, 5), (100, 3), (257, 9)])
@pytest.mark.parametrize("with_base", [True, False])
def test_outputs_and_gradients(
    N: int, k: int, with_base: bool, dtype: torch.dtype, matches: Callable[..., None]
) -> None:
    log_prob = (-3 * torch.rand(N, k)).to(dtype)
    old, base = (log_prob.float() + 0.5 * torch.randn(N, k) for _ in range(2))
    advantages = torch.randn(N) * 2
    advantages[::7] = 0

    def run(loss: Loss) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
        return lambda x: loss(x, old, advantages, base if with_base else None)

    matches(run(naive.grpo_loss), run(form.grpo_loss), [log_prob], scale=3)


@FORMS
def test_the_surrogate_is_the_advantage_times_the_ratio_and_never_clipped(loss: Loss) -> None:
    def at(ratio: float, advantage: float) -> float:
        new = torch.tensor([[ratio]]).log()
        return float(loss(new, torch.zeros(1, 1), torch.tensor([advantage]))[0])

    for ratio in (0.5, 1.0, 9.0):
        for advantage in (-1.0, 2.0):
            assert at(ratio, advantage) == pytest.approx(-ratio * advantage)


@FORMS
def test_at_ratio_1_the_gradient_is_the_policy_gradient_of_the_paper_with_its_clip(
    loss: Loss,
) -> None:
    """The clipped surrogate of PPO, max(-A r, -A clamp(r, 0.8, 1.2)), whose clip does not bind."""
    old, advantages = -3 * torch.rand(7, 5), torch.randn(7)
    own, clipped = (old.clone().requires_grad_() for _ in range(2))
    loss(own, old, advantages)[0].backward()
    ratio, A = (clipped - old).exp(), advantages[:, None]
    torch.maximum(-A * ratio, -A * ratio.clamp(0.8, 1.2)).mean().backward()
    torch.testing.assert_close(own.grad, clipped.grad)


@FORMS
def test_kl_is_zero_only_where_policies_agree(loss: Loss) -> None:
    log_prob = torch.tensor([[-1.0, -2.0]])

    def kl(base: Tensor) -> float:
        return float(loss(log_prob, log_prob, torch.zeros(1), base)[1])

    assert kl(log_prob) == 0.0
    assert kl(log_prob - 1) > 0.0
    assert kl(log_prob + 1) > 0.0
