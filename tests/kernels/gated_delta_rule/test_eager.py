"""The gated delta rule in chunks equals the recurrence, with a decay by head or by channel."""

from types import ModuleType

import pytest
import torch
import torch.nn.functional as F

from refine_server.kernels.delta_rule import CHUNK
from refine_server.kernels.delta_rule import naive as delta_rule
from refine_server.kernels.gated_delta_rule import eager, naive

TOLERANCE = {torch.float64: 1e-10, torch.float32: 2e-4}
DTYPES = pytest.mark.parametrize("dtype", TOLERANCE, ids=["fp64", "fp32"])
BY_CHANNEL = pytest.mark.parametrize("by_channel", [False, True], ids=["head", "channel"])


def make(T: int, dtype: torch.dtype, by_channel: bool, decay: float = 1.0) -> list[torch.Tensor]:
    B, H, K, V = 2, 3, 16, 8
    q, k = (F.normalize(torch.randn(B, H, T, K, dtype=dtype), dim=-1) for _ in "qk")
    v, state = torch.randn(B, H, T, V, dtype=dtype), torch.randn(B, H, K, V, dtype=dtype)
    g = -decay * torch.rand(B, H, T, K if by_channel else 1, dtype=dtype)
    return [q, k, v, g, torch.rand(B, H, T, dtype=dtype), state]


@DTYPES
@BY_CHANNEL
@pytest.mark.parametrize("T", [1, 2, 15, 16, 17, 63, 64, 65, 128, 191])
def test_chunks_equal_the_recurrence(T: int, by_channel: bool, dtype: torch.dtype) -> None:
    inputs = make(T, dtype, by_channel)
    results = []
    for form in (naive, eager):
        torch.manual_seed(1)
        leaves = [x.clone().requires_grad_() for x in inputs]
        outputs = form.gated_delta_rule(*leaves)
        total = sum((o * torch.randn_like(o)).sum() for o in outputs)
        results.append((*outputs, *torch.autograd.grad(total, leaves)))
    for expected, actual in zip(*results, strict=True):
        scale = max(1.0, float(expected.detach().abs().max()))
        torch.testing.assert_close(actual, expected, atol=TOLERANCE[dtype] * scale, rtol=0)


@BY_CHANNEL
def test_states_lie_at_chunk_boundaries(by_channel: bool) -> None:
    T = 2 * CHUNK + 5
    *inputs, state = make(T, torch.float64, by_channel)
    _, states = eager.gated_delta_rule(*inputs, state)
    assert states.shape[2] == 4
    for index, end in ((0, 0), (1, CHUNK), (2, 2 * CHUNK), (3, T)):
        expected = state
        if end:
            _, prefix = naive.gated_delta_rule(*(x[:, :, :end] for x in inputs), state)
            expected = prefix[:, :, -1]
        torch.testing.assert_close(states[:, :, index], expected)


@BY_CHANNEL
def test_a_fast_decay_neither_overflows_nor_spoils_gradients(by_channel: bool) -> None:
    leaves = [x.requires_grad_() for x in make(130, torch.float32, by_channel, decay=60.0)]
    o, states = eager.gated_delta_rule(*leaves)
    (o.sum() + states.sum()).backward()
    assert all(x.grad.isfinite().all() for x in leaves)


@pytest.mark.parametrize("form", [naive, eager], ids=["naive", "eager"])
@BY_CHANNEL
def test_without_decay_it_is_the_delta_rule(form: ModuleType, by_channel: bool) -> None:
    q, k, v, g, beta, state = make(70, torch.float64, by_channel)
    expected = delta_rule.delta_rule(q, k, v, beta, state)
    for actual, wanted in zip(
        form.gated_delta_rule(q, k, v, g * 0, beta, state), expected, strict=True
    ):
        torch.testing.assert_close(actual, wanted)
