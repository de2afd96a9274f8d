"""One step for many requests equals torch's AdamW for each request."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from refine_server.kernels.fast_weight_optim import OptimState, eager, naive

triton_form = pytest.importorskip("refine_server.kernels.fast_weight_optim.triton_impl")

Op = Callable[..., tuple[Tensor, Tensor]]
FORMS = pytest.mark.parametrize(
    "form",
    [naive.fast_weight_optim, eager.fast_weight_optim, triton_form.fast_weight_optim],
    ids=["naive", "eager", "triton"],
)
SHAPES = [(1,), (63,), (100, 3), (257, 9), (2048,)]
pytestmark = pytest.mark.usefixtures("nan_scratch")


def tensors(R: int, seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(R, *shape, generator=generator) for shape in SHAPES]


@FORMS
def test_equals_torchs_optimiser_for_each_request(form: Op) -> None:
    R = 3
    rates, limits = torch.tensor([1e-2, 3e-3, 0.1]), torch.tensor([1e9, 1.0, 0.5])
    decays = torch.tensor([0.0, 0.5, 0.01])
    params = tensors(R, 0)
    alone = [[p[r].clone().requires_grad_() for p in params] for r in range(R)]
    optimizers = [
        torch.optim.AdamW(own, lr=float(rate), weight_decay=float(decay))
        for own, rate, decay in zip(alone, rates, decays, strict=True)
    ]
    state = OptimState.new(params)
    for step in range(1, 4):
        grads = tensors(R, step)
        active = torch.tensor([True, step != 2, True])
        norm, stepped = form(params, grads, state, rates, limits, decays, active)
        for r in range(R):
            for p, g in zip(alone[r], grads, strict=True):
                p.grad = g[r].clone()
            expected = torch.nn.utils.clip_grad_norm_(alone[r], float(limits[r]))
            torch.testing.assert_close(norm[r], expected, atol=0, rtol=1e-5)
            if active[r]:
                optimizers[r].step()
        assert torch.equal(stepped, active)
    assert state.steps.tolist() == [3, 2, 3]
    for i, p in enumerate(params):
        for r in range(R):
            torch.testing.assert_close(p[r], alone[r][i].detach(), atol=2e-6, rtol=1e-5)


def test_tensors_are_stepped_on_in_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    """For any group size, and with a request left out."""
    results = []
    for most in (1, 4 * 3 * (1 + 63 + 100 * 3), eager.GROUP_BYTES):
        monkeypatch.setattr(eager, "GROUP_BYTES", most)
        params, grads = tensors(3, 0), tensors(3, 1)
        state, one = OptimState.new(params), torch.ones(3)
        active = torch.tensor([True, False, True])
        eager.fast_weight_optim(params, grads, state, 0.1 * one, one, 0.1 * one, active)
        assert all(torch.equal(p[1], q[1]) for p, q in zip(params, tensors(3, 0), strict=True))
        results.append((len(list(eager._groups(params))), params))
    assert [groups for groups, _ in results] == [5, 3, 1]
    for _, params in results[1:]:
        assert all(map(torch.equal, params, results[0][1]))


@FORMS
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_non_finite_gradients_are_skipped_and_flagged(form: Op, value: float) -> None:
    def run(spoil: bool) -> tuple[list[Tensor], OptimState, Tensor, Tensor]:
        params, grads = tensors(3, 0), tensors(3, 1)
        if spoil:
            grads[3][1, 200, 3] = value
        state = OptimState.new(params)
        one, on = torch.ones(3), torch.ones(3, dtype=torch.bool)
        norm, stepped = form(params, grads, state, 0.1 * one, one, 0.1 * one, on)
        return params, state, norm, stepped

    clean, spoilt = run(False), run(True)
    assert spoilt[3].tolist() == [True, False, True]
    assert not spoilt[2][1].isfinite()
    assert spoilt[1].steps.tolist() == [1, 0, 1]
    for before, a, b in zip(tensors(3, 0), clean[0], spoilt[0], strict=True):
        assert torch.equal(a[[0, 2]], b[[0, 2]])
        assert torch.equal(b[1], before[1])
    assert not any(m[1].any() for m in (*spoilt[1].first, *spoilt[1].second))


@FORMS
def test_no_request_is_active(form: Op) -> None:
    params, state = tensors(2, 0), OptimState.new(tensors(2, 0))
    one, off = torch.ones(2), torch.zeros(2, dtype=torch.bool)
    _, stepped = form(params, tensors(2, 1), state, one, one, one, off)
    assert not stepped.any()
    assert all(torch.equal(a, b) for a, b in zip(params, tensors(2, 0), strict=True))


def test_a_step_in_triton_is_seen_by_autograd() -> None:
    """A graph that saved a parameter must not be used after the parameter moved."""
    (p,) = params = [torch.ones(1, 4, requires_grad=True)]
    loss = p.square().sum()
    state, one = OptimState.new(params), torch.ones(1)
    on = torch.ones(1, dtype=torch.bool)
    triton_form.fast_weight_optim(params, [torch.ones(1, 4)], state, one, one, one, on)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()
