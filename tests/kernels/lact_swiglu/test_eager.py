"""LaCT's memory: the eager form equals the definition, and the definition is a gradient."""

from collections.abc import Callable
from types import ModuleType

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from refine_server.kernels.lact_swiglu import eager, naive

H, D, HIDDEN = 2, 6, 10


def random(*shape: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(sum(shape)))


def memory(rows: int, dtype: torch.dtype) -> list[Tensor]:
    sizes = ((HIDDEN, D), (D, HIDDEN), (HIDDEN, D))
    return [random(rows, H, *size, dtype=dtype) * size[1] ** -0.5 for size in sizes]


@pytest.mark.parametrize(("rows", "memories"), [(1, 1), (6, 1), (6, 2), (3, 3)])
@pytest.mark.parametrize("T", [1, 7])
def test_apply(
    rows: int,
    memories: int,
    T: int,
    eager_dtype: torch.dtype,
    eager_matches: Callable[..., None],
) -> None:
    inputs = [random(rows, H, T, D, dtype=eager_dtype), *memory(memories, eager_dtype)]
    eager_matches(naive.lact_apply, eager.lact_apply, inputs)


@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("T", [1, 7, 16])
def test_gradient(
    T: int, per_channel: bool, eager_dtype: torch.dtype, eager_matches: Callable[..., None]
) -> None:
    widths = (D, HIDDEN, D) if per_channel else (1, 1, 1)
    rates = [random(3, H, T, width, dtype=eager_dtype).abs() for width in widths]
    k, v = (random(3, H, T, D, dtype=eager_dtype) for _ in "kv")
    inputs = [k, v, *rates, *memory(3, eager_dtype)]
    eager_matches(naive.lact_gradient, eager.lact_gradient, inputs)


@pytest.mark.parametrize("form", [naive, eager], ids=["naive", "eager"])
def test_a_write_is_the_gradient_of_the_dot_product(form: ModuleType) -> None:
    k, v = random(1, H, 5, D, dtype=torch.float64), random(1, H, 5, D, dtype=torch.float64) + 1
    rate = random(1, H, 5, 1, dtype=torch.float64).abs()
    w0, w1, w2 = (w.requires_grad_() for w in memory(1, torch.float64))
    read = (F.silu(k @ w0.mT) * (k @ w2.mT)) @ w1.mT
    expected = torch.autograd.grad((rate * read * v).sum(), (w0, w1, w2))
    actual = form.lact_gradient(k, v, rate, rate, rate, w0, w1, w2)
    for a, b in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("form", [naive, eager], ids=["naive", "eager"])
def test_half_precision_keeps_the_memory_wide(form: ModuleType) -> None:
    k = random(2, H, 4, D, dtype=torch.bfloat16)
    rate = random(2, H, 4, 1, dtype=torch.float32).abs()
    weights = memory(2, torch.float32)
    assert form.lact_apply(k, *weights).dtype == torch.bfloat16
    assert {w.dtype for w in form.lact_gradient(k, k, rate, rate, rate, *weights)} == {
        torch.float32
    }
