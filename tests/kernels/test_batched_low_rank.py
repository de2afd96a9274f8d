"""A shared projection with each request's own LoRA: both fast forms, odd sizes."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from refine_server.kernels.batched_low_rank import eager, naive

triton_form = pytest.importorskip("refine_server.kernels.batched_low_rank.triton_impl")

Op = Callable[..., Tensor]
FORMS = pytest.mark.parametrize(
    "form", [eager.batched_low_rank, triton_form.batched_low_rank], ids=["eager", "triton"]
)
pytestmark = pytest.mark.usefixtures("nan_scratch")


def weights(R: int, width: int, rank: int, out: int, dtype: torch.dtype) -> list[Tensor]:
    return [
        (torch.randn(*shape) * shape[-2] ** -0.5).to(dtype)
        for shape in ((out, width), (R, width, rank), (R, rank, out))
    ]


@FORMS
@pytest.mark.parametrize(
    ("rows", "R", "width", "rank", "out"),
    [(1, 1, 7, 2, 5), (63, 1, 100, 16, 130), (6, 2, 63, 3, 65), (300, 2, 33, 20, 17)],
)
@pytest.mark.parametrize("bias", [True, False])
def test_outputs_and_gradients(
    form: Op,
    rows: int,
    R: int,
    width: int,
    rank: int,
    out: int,
    bias: bool,
    dtype: torch.dtype,
    matches: Callable[..., None],
) -> None:
    inputs = [torch.randn(rows, 1, width).to(dtype), *weights(R, width, rank, out, dtype)]
    inputs += [torch.randn(out).to(dtype)] if bias else []
    matches(naive.batched_low_rank, form, inputs, scale=3)


def test_the_rows_of_a_long_request_are_summed_in_parts(matches: Callable[..., None]) -> None:
    inputs = [torch.randn(1100, 12), *weights(1, 12, 4, 9, torch.float32)]
    matches(naive.batched_low_rank, triton_form.batched_low_rank, inputs, scale=3)


@FORMS
def test_gradients_of_what_is_frozen_are_not_made(form: Op) -> None:
    x = torch.randn(9, 16)
    weight, a, b = weights(3, 16, 2, 8, torch.float32)
    expected = None
    for op in (naive.batched_low_rank, form):
        a_own, b_own = (t.clone().requires_grad_() for t in (a, b))
        op(x, weight, a_own, b_own).square().sum().backward()
        grads = torch.cat([a_own.grad.flatten(), b_own.grad.flatten()])
        expected = grads if expected is None else expected
    torch.testing.assert_close(grads, expected, atol=1e-4, rtol=1e-4)
    assert x.grad is None


@FORMS
def test_requests_do_not_mix(form: Op) -> None:
    x = torch.randn(3, 40, 16)
    weight, *own = weights(3, 16, 2, 8, torch.float32)

    def gradients(spoil: bool) -> tuple[Tensor, Tensor, Tensor]:
        a, b = (t.clone() for t in own)
        if spoil:
            a[1] = float("nan")
        a.requires_grad_()
        b.requires_grad_()
        y = form(x, weight, a, b)
        y.sum().backward()
        return y.detach(), a.grad, b.grad

    for clean, spoilt in zip(gradients(False), gradients(True), strict=True):
        assert torch.equal(clean[[0, 2]], spoilt[[0, 2]])
    assert gradients(True)[0][1].isnan().all()
