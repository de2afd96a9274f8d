"""LaCT's memory: the fast form equals the definition, and the definition is a gradient."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from refine_server.kernels.lact_swiglu import eager as fast
from refine_server.kernels.lact_swiglu import naive

TOLERANCE = {torch.float64: 1e-11, torch.float32: 2e-5}
DTYPES = pytest.mark.parametrize("dtype", TOLERANCE, ids=["fp64", "fp32"])
H, D, HIDDEN = 2, 6, 10


def random(*shape: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(sum(shape)))


def memory(rows: int, dtype: torch.dtype) -> list[Tensor]:
    sizes = ((HIDDEN, D), (D, HIDDEN), (HIDDEN, D))
    return [random(rows, H, *size, dtype=dtype) * size[1] ** -0.5 for size in sizes]


def assert_same(expected_form, form, inputs: list[Tensor], dtype: torch.dtype) -> None:
    """Outputs and, for one random direction, gradients with respect to every input."""
    results = []
    for run in (expected_form, form):
        leaves = [x.clone().requires_grad_() for x in inputs]
        outputs = run(*leaves)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        total = sum((o * random(*o.shape, dtype=o.dtype)).sum() for o in outputs)
        results.append((*outputs, *torch.autograd.grad(total, leaves)))
    for expected, actual in zip(*results, strict=True):
        scale = max(1.0, float(expected.detach().abs().max())) if expected.numel() else 1.0
        torch.testing.assert_close(actual, expected, atol=TOLERANCE[dtype] * scale, rtol=0)


@DTYPES
@pytest.mark.parametrize(("rows", "memories"), [(1, 1), (6, 1), (6, 2), (3, 3)])
@pytest.mark.parametrize("T", [1, 7])
def test_apply(rows: int, memories: int, T: int, dtype: torch.dtype) -> None:
    inputs = [random(rows, H, T, D, dtype=dtype), *memory(memories, dtype)]
    assert_same(naive.lact_apply, fast.lact_apply, inputs, dtype)


@DTYPES
@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("T", [1, 7, 16])
def test_gradient(T: int, per_channel: bool, dtype: torch.dtype) -> None:
    widths = (D, HIDDEN, D) if per_channel else (1, 1, 1)
    rates = [random(3, H, T, width, dtype=dtype).abs() for width in widths]
    inputs = [random(3, H, T, D, dtype=dtype), random(3, H, T, D, dtype=dtype)]
    assert_same(
        naive.lact_gradient, fast.lact_gradient, [*inputs, *rates, *memory(3, dtype)], dtype
    )


@pytest.mark.parametrize("form", [naive, fast], ids=["naive", "torch"])
def test_a_write_is_the_gradient_of_the_dot_product(form) -> None:
    k, v = random(1, H, 5, D, dtype=torch.float64), random(1, H, 5, D, dtype=torch.float64) + 1
    rate = random(1, H, 5, 1, dtype=torch.float64).abs()
    w0, w1, w2 = (w.requires_grad_() for w in memory(1, torch.float64))
    read = (F.silu(k @ w0.mT) * (k @ w2.mT)) @ w1.mT
    expected = torch.autograd.grad((rate * read * v).sum(), (w0, w1, w2))
    actual = form.lact_gradient(k, v, rate, rate, rate, w0, w1, w2)
    for a, b in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("form", [naive, fast], ids=["naive", "torch"])
def test_half_precision_keeps_the_memory_wide(form) -> None:
    k = random(2, H, 4, D, dtype=torch.bfloat16)
    rate = random(2, H, 4, 1, dtype=torch.float32).abs()
    weights = memory(2, torch.float32)
    assert form.lact_apply(k, *weights).dtype == torch.bfloat16
    assert {w.dtype for w in form.lact_gradient(k, k, rate, rate, rate, *weights)} == {
        torch.float32
    }
