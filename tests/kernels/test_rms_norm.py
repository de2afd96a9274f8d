"""RMS norms with a hand-written backward pass equal the definition, also for a single row."""

from collections.abc import Callable
from functools import partial

import pytest
import torch

from refine_server.kernels.rms_norm import eager, naive

EPS = 1e-3


@pytest.mark.parametrize("shape", [(1, 1, 7), (2, 5, 3, 16), (3, 130, 33)])
def test_outputs_and_gradients(
    shape: tuple[int, ...], eager_dtype: torch.dtype, eager_matches: Callable[..., None]
) -> None:
    x = torch.randn(*shape, dtype=eager_dtype)
    x[0, 0] = 0.0  # has no direction
    own = shape[0], *(1,) * (len(shape) - 2), shape[-1]
    for weight_shape in (shape[-1:], own):
        weight = torch.randn(*weight_shape, dtype=eager_dtype)
        forms = (partial(form.rms_norm, eps=EPS) for form in (naive, eager))
        eager_matches(*forms, [x, weight])
    eager_matches(*(partial(form.l2_norm, eps=EPS) for form in (naive, eager)), [x])


@pytest.mark.parametrize("shape", [(1, 7), (1, 1, 33), (1, 1, 1, 128), (2, 1, 9)])
@torch.no_grad()
def test_without_a_graph(shape: tuple[int, ...], eager_dtype: torch.dtype) -> None:
    """Decoding calls them without a graph; the scale of a single row is a number."""
    x, weight = torch.randn(*shape, dtype=eager_dtype), torch.randn(shape[-1], dtype=eager_dtype)
    for row in (x, torch.zeros_like(x)):
        expected, actual = (form.rms_norm(row, weight, EPS) for form in (naive, eager))
        torch.testing.assert_close(actual, expected)
        expected, actual = (form.l2_norm(row, EPS) for form in (naive, eager))
        torch.testing.assert_close(actual, expected)


def test_bf16_rounds_as_the_definition() -> None:
    x, weight = torch.randn(3, 9, 24).bfloat16(), torch.rand(24).bfloat16()
    assert torch.equal(eager.rms_norm(x, weight, 1e-5), naive.rms_norm(x, weight, 1e-5))
    assert torch.equal(eager.l2_norm(x, 1e-5), naive.l2_norm(x, 1e-5))
