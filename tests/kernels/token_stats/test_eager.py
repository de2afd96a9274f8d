"""Token statistics a block of rows at a time equal those of the whole matrix."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from refine_server.kernels.token_stats import TokenStats, eager, naive

pytestmark = pytest.mark.usefixtures("nan_scratch")


@pytest.mark.parametrize("N", [1, 130, 257])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_outputs_and_gradients(
    N: int, temperature: float, eager_dtype: torch.dtype, eager_matches: Callable[..., None]
) -> None:
    hidden = torch.randn(N, 16, dtype=eager_dtype)
    weight = torch.randn(101, 16, dtype=eager_dtype) * 0.5
    targets = torch.randint(0, 101, (N,))

    def run(stats: Callable[..., TokenStats]) -> Callable[[Tensor, Tensor], TokenStats]:
        return lambda h, w: stats(h, w, targets, temperature)

    eager_matches(run(naive.token_stats), run(eager.token_stats), [hidden, weight], scale=5)


def test_no_vocabulary_matrix_is_kept_for_the_backward_pass() -> None:
    hidden = torch.randn(300, 8, requires_grad=True)
    weight, targets = torch.randn(5_000, 8), torch.randint(0, 5_000, (300,))
    largest = 0

    def note(tensor: Tensor) -> Tensor:
        nonlocal largest
        largest = max(largest, tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda t: t):
        eager.token_stats(hidden, weight, targets)
    assert 0 < largest <= hidden.numel()
