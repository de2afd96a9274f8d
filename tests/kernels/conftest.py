"""Fixtures for the tests of all ops: comparisons with the definitions, NaN-filled scratch memory.

Triton forms run in Triton's interpreter.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import pytest
import torch
from torch import Tensor

Op = Callable[..., Tensor | Sequence[Tensor]]
Results = tuple[list[Tensor], list[Tensor]]
"""Outputs, and gradients with respect to every input."""

# Relative to the largest value of an output or gradient; bf16 has 8 significant bits.
TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 1.6e-2}

EAGER_TOLERANCE = {torch.float64: 1e-11, torch.float32: 2e-5}


@pytest.fixture(params=TOLERANCE, ids=["fp32", "bf16"])
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    """Dtypes in which Triton forms are tested."""
    return request.param


@pytest.fixture(params=EAGER_TOLERANCE, ids=["fp64", "fp32"])
def eager_dtype(request: pytest.FixtureRequest) -> torch.dtype:
    """Dtypes in which eager forms are tested."""
    return request.param


@pytest.fixture
def nan_scratch() -> Iterator[None]:
    """Make ``torch.empty`` return NaN (or the largest integer), to find unwritten parts."""
    torch.use_deterministic_algorithms(True)
    assert torch.empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)


def run(op: Op, leaves: list[Tensor]) -> Results:
    """Run an op; the gradients are those of its outputs along one random direction."""
    outputs = op(*leaves)
    outputs = list(outputs) if isinstance(outputs, tuple) else [outputs]
    generator = torch.Generator().manual_seed(7)
    total = torch.zeros((), dtype=torch.float64)
    for o in outputs:
        if o.requires_grad:
            direction = torch.randn(o.shape, generator=generator)
            total = total + (o.double() * direction).sum()
    gradients = list(torch.autograd.grad(total, leaves)) if total.requires_grad else []
    return [o.detach() for o in outputs], gradients


class Matches(Protocol):
    def __call__(
        self, naive: Op, form: Op, inputs: list[Tensor], scale: float = 1, rounded: bool = False
    ) -> None: ...


@pytest.fixture
def matches() -> Matches:
    """Compare a form in some dtype with the definition on the same values in fp64.

    Outputs and gradients may differ by ``scale`` times the dtype's tolerance. ``rounded``: fp32
    outputs, too, are made of products that were rounded to the inputs' dtype.
    """

    def check(
        naive: Op, form: Op, inputs: list[Tensor], scale: float = 1, rounded: bool = False
    ) -> None:
        wide = [x.detach().double().requires_grad_() for x in inputs]
        own = [x.detach().clone().requires_grad_() for x in inputs]
        expected, actual = run(naive, wide), run(form, own)
        for kind, a, b in zip(("outputs", "gradients"), expected, actual, strict=True):
            assert len(a) == len(b)
            for i, (x, y) in enumerate(zip(a, b, strict=True)):
                assert x.shape == y.shape
                if not x.is_floating_point():
                    assert torch.equal(x, y), f"{kind}[{i}]"
                    continue
                size = x.abs().max().clamp_min(1e-6) if x.numel() else 1.0
                precise = kind == "outputs" and y.dtype == torch.float32 and not rounded
                tolerance = TOLERANCE[torch.float32 if precise else inputs[0].dtype]
                error = (y.double() - x).abs().max() / size if x.numel() else 0.0
                assert error <= tolerance * scale, f"{kind}[{i}]: {float(error):.2e}"

    return check


class EagerMatches(Protocol):
    def __call__(self, naive: Op, form: Op, inputs: list[Tensor], scale: float = 1) -> None: ...


@pytest.fixture
def eager_matches() -> EagerMatches:
    """Compare an eager form with the definition in the inputs' own dtype, fp64 or fp32.

    Outputs may differ by ``scale`` times the dtype's tolerance, gradients by that share of their
    largest value.
    """

    def check(naive: Op, form: Op, inputs: list[Tensor], scale: float = 1) -> None:
        expected, actual = (
            run(op, [x.detach().clone().requires_grad_() for x in inputs]) for op in (naive, form)
        )
        tolerance = EAGER_TOLERANCE[inputs[0].dtype] * scale
        for a, b in zip(expected[0], actual[0], strict=True):
            torch.testing.assert_close(b, a, atol=tolerance, rtol=tolerance)
        for a, b in zip(expected[1], actual[1], strict=True):
            size = max(1.0, float(a.abs().max())) if a.numel() else 1.0
            torch.testing.assert_close(b, a, atol=tolerance * size, rtol=0)

    return check
