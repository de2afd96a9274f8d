"""The update of LaCT's memory by a chunk in Triton: outputs and gradients."""

from collections.abc import Callable
from types import ModuleType

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

from refine_server.kernels.lact_swiglu import MUON_COEFFICIENTS, naive
from refine_server.kernels.lact_swiglu import triton_impl as form
from refine_server.kernels.lact_swiglu.triton_muon import orthogonal

pytestmark = pytest.mark.usefixtures("nan_scratch")


def memory(D: int, F: int, rows: int = 2, heads: int = 2) -> list[Tensor]:
    return [torch.randn(rows, heads, *s) * s[1] ** -0.5 for s in ((F, D), (D, F), (F, D))]


def inputs(D: int, F: int, momentum: bool, rows: int = 2, heads: int = 2) -> list[Tensor]:
    """Make steps, weights before and norms, then momentum and its decay."""
    steps, before = memory(D, F, rows, heads), memory(D, F, rows, heads)
    norms = [torch.rand(*w.shape[:-1], 1) + 0.5 for w in before]
    kept = [*memory(D, F, rows, heads), torch.rand(rows, heads, 1, 1)] if momentum else []
    return [*steps, *before, *norms, *kept]


def flat(module: ModuleType, **rule: bool) -> Callable[..., tuple[Tensor, ...]]:
    """Return ``lact_update`` with flat lists of arguments and results."""

    def run(*tensors: Tensor) -> tuple[Tensor, ...]:
        steps, before, norms, momentum = (tensors[i : i + 3] for i in range(0, 12, 3))
        keep = tensors[12] if momentum else None
        new = module.lact_update(steps, before, norms, momentum or None, keep, **rule)
        return tuple(t for group in new if group is not None for t in group)

    return run


@pytest.mark.parametrize("prenorm", [False, True], ids=["postnorm", "prenorm"])
@pytest.mark.parametrize("momentum", [False, True], ids=["plain", "momentum"])
@pytest.mark.parametrize(("D", "F"), [(3, 2), (33, 20), (20, 63)])
def test_update(
    D: int, F: int, momentum: bool, prenorm: bool, matches: Callable[..., None]
) -> None:
    runs = (flat(m, prenorm=prenorm) for m in (naive, form))
    matches(*runs, inputs(D, F, momentum))


def test_long_rows(matches: Callable[..., None]) -> None:
    matches(flat(naive), flat(form), inputs(257, 5, momentum=True, rows=1))


@pytest.mark.parametrize("wanted", [slice(1, 2), slice(3, 6), slice(7, 8)])
def test_gradients_through_some_of_the_outputs(wanted: slice) -> None:
    """Outputs 0 to 8 are weights, main and momentum."""
    given = inputs(12, 20, momentum=True, rows=1)
    results = []
    for module, dtype in ((naive, torch.float64), (form, torch.float32)):
        own = [x.to(dtype).requires_grad_() for x in given]
        total = sum(o.square().sum() for o in flat(module, prenorm=True)(*own)[wanted])
        results.append(torch.autograd.grad(total, own, allow_unused=True, materialize_grads=True))
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(
            b.double(), a, atol=2e-5 * max(1.0, float(a.abs().max())), rtol=0
        )


def test_a_row_of_zeros_has_finite_gradients(matches: Callable[..., None]) -> None:
    given = inputs(12, 20, momentum=False, rows=1)
    for matrix in (*given[:3], *given[3:6]):
        matrix[0, 1, 3] = 0
    matches(flat(naive), flat(form), given)


def test_no_memories() -> None:
    new = form.lact_update(*(memory(8, 6, rows=0) for _ in range(2)), inputs(8, 6, False, 0)[6:])
    assert [w.shape for w in new.weights] == [(0, 2, 6, 8), (0, 2, 8, 6), (0, 2, 6, 8)]


@pytest.mark.parametrize(
    ("D", "F", "momentum", "prenorm"),
    [(1, 5, False, True), (33, 20, True, False), (20, 33, True, True), (66, 66, False, False)],
)
def test_muon_rounds_where_the_definition_does(
    D: int, F: int, momentum: bool, prenorm: bool
) -> None:
    """Summing in another order may round a product differently, which moves a few elements."""
    given = inputs(D, F, momentum, rows=1, heads=1)
    expected, actual = (flat(m, prenorm=prenorm, muon=True)(*given) for m in (naive, form))
    for a, b in zip(expected, actual, strict=True):
        assert (b - a).norm() <= 5e-3 * a.norm()


@pytest.mark.parametrize("shape", [(2, 3, 12, 20), (2, 3, 20, 12)])
def test_muon_makes_singular_values_nearly_equal(shape: tuple[int, ...]) -> None:
    values = torch.linalg.svdvals(naive.orthogonal(torch.randn(shape)))
    assert values.min() >= 0.6
    assert values.max() <= 1.3


@pytest.mark.parametrize(("D", "F"), [(31, 20), (20, 33)])
def test_muon_gradients_are_as_accurate_as_the_definition(D: int, F: int) -> None:
    """Both round to bf16 after every product, so both are measured against fp64."""
    steps, directions = memory(D, F, 1, 1), memory(D, F, 1, 1)

    def gradients(results: list[Tensor], leaves: list[Tensor]) -> list[Tensor]:
        total = sum((r * d).sum() for r, d in zip(results, directions, strict=True))
        return [g.double() for g in torch.autograd.grad(total, leaves)]

    def leaves(dtype: torch.dtype) -> list[Tensor]:
        return [s.bfloat16().to(dtype).requires_grad_() for s in steps]

    wide, rounded, own = leaves(torch.float64), leaves(torch.float32), leaves(torch.float32)
    exact = gradients([_exactly_orthogonal(s) for s in wide], wide)
    defined = gradients([naive.orthogonal(s) for s in rounded], rounded)
    ours = gradients(list(orthogonal(tuple(own))), own)
    for a, b, c in zip(exact, defined, ours, strict=True):
        assert (c - a).norm() <= 1.2 * (b - a).norm() <= 0.2 * a.norm()


def _exactly_orthogonal(x: Tensor) -> Tensor:
    x = x / x.norm(dim=(-2, -1), keepdim=True)
    tall = x.shape[-2] > x.shape[-1]
    x = x.mT if tall else x
    for a, b, c in MUON_COEFFICIENTS:
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if tall else x


@pytest.mark.parametrize("muon", [False, True], ids=["plain", "muon"])
def test_memories_do_not_mix(muon: bool) -> None:
    given = inputs(10, 20, momentum=True, rows=2, heads=1 if muon else 2)

    def results() -> list[Tensor]:
        own = [x.clone().requires_grad_() for x in given]
        outputs = flat(form, muon=muon)(*own)
        return [*outputs, *torch.autograd.grad(sum(o.sum() for o in outputs), own)]

    clean = results()
    for group in (0, 3, 9):
        given[group][1] = float("nan")
    for a, b in zip(clean, results(), strict=True):
        assert torch.equal(a[0], b[0])
    assert b[1].isnan().all()  # the gradient of keep


def test_fp64_is_refused() -> None:
    given = inputs(8, 8, momentum=False)
    with pytest.raises(TypeError, match="REFINE_KERNELS=torch"):
        flat(form)(*(x.double() for x in given))
