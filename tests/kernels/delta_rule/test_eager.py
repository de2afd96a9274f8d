"""The delta rule in chunks equals the recurrence: outputs, boundary states, and gradients."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from refine_server.kernels.delta_rule import CHUNK, eager, naive

pytestmark = pytest.mark.usefixtures("nan_scratch")


def inputs(
    B: int, H: int, T: int, K: int, V: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """q and k of norm 1, v and beta."""
    q, k = (F.normalize(torch.randn(B, H, T, K, dtype=dtype), dim=-1) for _ in "qk")
    return q, k, torch.randn(B, H, T, V, dtype=dtype), torch.rand(B, H, T, dtype=dtype)


@pytest.mark.parametrize("T", [1, 2, 63, 64, 65, 128, 191])
def test_outputs_states_and_gradients(
    T: int, eager_dtype: torch.dtype, eager_matches: Callable[..., None]
) -> None:
    state = torch.randn(2, 3, 16, 8, dtype=eager_dtype)
    args = [*inputs(2, 3, T, 16, 8, eager_dtype), state]
    eager_matches(naive.delta_rule, eager.delta_rule, args, scale=10)


@pytest.mark.parametrize("T", [2, 64, 70])
def test_states_alone(T: int, eager_dtype: torch.dtype, eager_matches: Callable[..., None]) -> None:
    _, k, v, beta = inputs(2, 3, T, 16, 8, eager_dtype)
    args = [k, v, beta, torch.randn(2, 3, 16, 8, dtype=eager_dtype)]
    eager_matches(naive.delta_states, eager.delta_states, args, scale=10)


def test_states_lie_at_chunk_boundaries() -> None:
    T = CHUNK + 5
    args = inputs(1, 2, T, 8, 8, torch.float64)
    _, states = eager.delta_rule(*args)
    assert states.shape[2] == 3
    assert not states[:, :, 0].any()
    for index, end in ((1, CHUNK), (2, T)):
        _, prefix = naive.delta_rule(*(x[:, :, :end] for x in args))
        torch.testing.assert_close(states[:, :, index], prefix[:, :, -1])


def test_tokens_with_beta_0_change_nothing() -> None:
    args = inputs(1, 2, 10, 8, 8, torch.float64)
    args[3][:, :, 6:] = 0
    _, states = eager.delta_rule(*args)
    _, short = eager.delta_rule(*(x[:, :, :6] for x in args))
    torch.testing.assert_close(states[:, :, -1], short[:, :, -1])
