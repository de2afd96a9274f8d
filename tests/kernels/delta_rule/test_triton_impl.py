"""The delta rule in Triton: outputs, boundary states, and gradients through all of them."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F

pytest.importorskip("triton")

from refine_server.kernels.delta_rule import naive
from refine_server.kernels.delta_rule import triton_impl as form

pytestmark = pytest.mark.usefixtures("nan_scratch")


def inputs(B: int, H: int, T: int, K: int, V: int, dtype: torch.dtype) -> list[torch.Tensor]:
    q, k = (F.normalize(torch.randn(B, H, T, K), dim=-1).to(dtype) for _ in "qk")
    v, beta = torch.randn(B, H, T, V).to(dtype), torch.rand(B, H, T).to(dtype)
    return [q, k, v, beta, torch.randn(B, H, K, V)]


@pytest.mark.parametrize(
    ("T", "K", "V"), [(1, 16, 16), (5, 8, 3), (63, 16, 40), (64, 72, 16), (100, 20, 35)]
)
def test_outputs_states_and_gradients(T: int, K: int, V: int, matches: Callable[..., None]) -> None:
    args = inputs(1, 2 if T < 10 else 1, T, K, V, torch.float32)
    matches(naive.delta_rule, form.delta_rule, args, scale=5)


@pytest.mark.parametrize(("T", "K", "V"), [(5, 33, 17), (65, 16, 16)])
def test_bf16(T: int, K: int, V: int, matches: Callable[..., None]) -> None:
    args = inputs(1, 1, T, K, V, torch.bfloat16)
    matches(naive.delta_rule, form.delta_rule, args, scale=5)


def test_many_chunks(matches: Callable[..., None]) -> None:
    matches(naive.delta_rule, form.delta_rule, inputs(1, 1, 257, 8, 8, torch.float32), scale=5)


def test_without_a_state(matches: Callable[..., None]) -> None:
    matches(naive.delta_rule, form.delta_rule, inputs(1, 1, 20, 8, 8, torch.float32)[:4], scale=5)


def test_equal_keys_stay_finite(matches: Callable[..., None]) -> None:
    """Equal keys are the worst case of the triangular system: each overwrites the one before."""
    args = inputs(1, 1, 64, 16, 16, torch.float32)
    args[1] = args[1][:, :, :1].expand(args[1].shape).contiguous()
    args[3] = torch.full_like(args[3], 0.99)
    matches(naive.delta_rule, form.delta_rule, args, scale=5)


@pytest.mark.parametrize(("B", "K", "V"), [(1, 16, 16), (5, 33, 70)])
def test_one_decode_step(B: int, K: int, V: int, dtype: torch.dtype) -> None:
    args = inputs(B, 2, 1, K, V, dtype)
    expected = naive.delta_rule(*(x.double() for x in args))
    o, states = form.delta_rule(*args)
    assert o.dtype == dtype
    tolerance = 1e-5 if dtype == torch.float32 else 1.6e-2
    torch.testing.assert_close(o.double(), expected[0], atol=tolerance, rtol=tolerance)
    torch.testing.assert_close(states.double(), expected[1], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("T", [1, 20])
def test_rows_do_not_mix(T: int) -> None:
    args = inputs(3, 1, T, 8, 8, torch.float32)
    clean = form.delta_rule(*args)
    args[4][1] = float("nan")
    spoilt = form.delta_rule(*args)
    for a, b in zip(clean, spoilt, strict=True):
        assert torch.equal(a[[0, 2]], b[[0, 2]])
        assert b[1].isnan().any()


@pytest.mark.parametrize("has_state", [True, False])
def test_more_rows_than_a_grid_has(
    has_state: bool, matches: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(form, "GRID_LIMIT", 5)
    args = inputs(5, 2, 3, 8, 8, torch.float32)
    matches(naive.delta_rule, form.delta_rule, args if has_state else args[:4], scale=5)


def test_no_rows() -> None:
    o, states = form.delta_rule(*inputs(0, 2, 5, 8, 8, torch.float32))
    assert (o.shape, states.shape) == ((0, 2, 5, 8), (0, 2, 2, 8, 8))
