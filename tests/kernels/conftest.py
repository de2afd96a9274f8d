"""Triton forms run in the interpreter, on scratch that is full of NaN, against fp64 definitions."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

# Of outputs and gradients, as a share of the largest value: bf16 keeps 8 bits of a result.
TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 1.6e-2}


@pytest.fixture(params=TOLERANCE, ids=["fp32", "bf16"])
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    return request.param


@pytest.fixture
def nan_scratch() -> Iterator[None]:
    """Whatever ``torch.empty`` returns is NaN (or the largest integer), so unwritten parts show."""
    torch.use_deterministic_algorithms(True)
    assert torch.empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def matches() -> Callable[..., None]:
    """Compare a form in some dtype with the definition on the same values in fp64.

    Outputs and, for one random direction, gradients with respect to every input. ``rounded``: fp32
    outputs, too, are made of products that were rounded to the inputs' dtype.
    """

    def run(form: Callable[..., Any], leaves: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        outputs = form(*leaves)
        outputs = list(outputs) if isinstance(outputs, tuple) else [outputs]
        generator = torch.Generator().manual_seed(7)
        total = torch.zeros((), dtype=torch.float64)
        for o in outputs:
            if o.requires_grad:
                direction = torch.randn(o.shape, generator=generator)
                total = total + (o.double() * direction).sum()
        gradients = list(torch.autograd.grad(total, leaves)) if total.requires_grad else []
        return [o.detach() for o in outputs], gradients

    def check(
        naive: Callable[..., Any],
        form: Callable[..., Any],
        inputs: list[Tensor],
        scale: float = 1,
        rounded: bool = False,
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
