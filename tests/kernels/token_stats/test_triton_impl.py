"""Token statistics in Triton: one pass over the vocabulary, its gradients, and its isolation."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

from refine_server.kernels.token_stats import TokenStats, naive
from refine_server.kernels.token_stats import triton_impl as form

pytestmark = pytest.mark.usefixtures("nan_scratch")


@pytest.mark.parametrize(
    ("N", "D", "V", "temperature"),
    [(1, 16, 101, 1.0), (63, 33, 400, 0.7), (100, 63, 257, 1.0), (257, 8, 65, 0.5), (0, 8, 50, 1)],
)
def test_outputs_and_gradients(
    N: int, D: int, V: int, temperature: float, dtype: torch.dtype, matches: Callable[..., None]
) -> None:
    hidden, weight = torch.randn(N, D).to(dtype), (torch.randn(V, D) * 0.3).to(dtype)
    targets = torch.randint(0, V, (N,))

    def run(stats: Callable[..., TokenStats]) -> Callable[[Tensor, Tensor], TokenStats]:
        return lambda h, w: stats(h, w, targets, temperature)

    matches(run(naive.token_stats), run(form.token_stats), [hidden, weight])


def test_shares_and_slabs_of_the_vocabulary_are_merged(
    matches: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(form, "SLAB", 256 * 65)
    hidden, weight = torch.randn(65, 24), torch.randn(1501, 24)
    targets = torch.randint(0, 1501, (65,))

    def run(stats: Callable[..., TokenStats]) -> Callable[[Tensor, Tensor], TokenStats]:
        return lambda h, w: stats(h, w, targets)

    matches(run(naive.token_stats), run(form.token_stats), [hidden, weight])


def test_only_what_needs_a_gradient_gets_one() -> None:
    hidden, weight = torch.randn(9, 16, requires_grad=True), torch.randn(50, 16)
    stats = form.token_stats(hidden, weight, torch.randint(0, 50, (9,)))
    stats.log_prob.sum().backward()
    assert hidden.grad is not None
    assert weight.grad is None
    assert not stats.entropy.requires_grad
    assert not stats.lse.requires_grad


def test_huge_logits_neither_overflow_nor_lose_the_target() -> None:
    hidden = torch.tensor([[1e3, 0.0], [0.0, -1e3], [0.0, 0.0]])
    weight = torch.randn(140, 2)
    targets = torch.tensor([3, 139, 0])
    expected = naive.token_stats(hidden.double(), weight.double(), targets)
    actual = form.token_stats(hidden, weight, targets)
    for a, b in zip(expected, actual, strict=True):
        torch.testing.assert_close(b, a.to(b.dtype), atol=1e-3, rtol=1e-5)


def test_nan_stays_within_its_row() -> None:
    hidden, weight = torch.randn(70, 16), torch.randn(300, 16)
    targets = torch.randint(0, 300, (70,))
    clean = form.token_stats(hidden, weight, targets)
    hidden[5] = float("nan")
    poisoned = form.token_stats(hidden, weight, targets)
    others = torch.arange(70) != 5
    assert poisoned.log_prob[5].isnan()
    for a, b in zip(clean, poisoned, strict=True):
        assert torch.equal(a[others], b[others])


def test_fp64_is_refused_by_name() -> None:
    with pytest.raises(TypeError, match="float64"):
        form.token_stats(
            torch.randn(2, 4).double(), torch.randn(5, 4).double(), torch.tensor([0, 1])
        )
