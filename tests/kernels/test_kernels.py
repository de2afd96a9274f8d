"""Every fast form equals its definition: outputs and gradients, odd sizes, two dtypes."""

from functools import partial

import pytest
import torch
from torch import Tensor

from refine_server.kernels.attention import eager as attention_eager
from refine_server.kernels.attention import naive as attention_naive
from refine_server.kernels.delta_rule import CHUNK
from refine_server.kernels.delta_rule import eager as delta_rule_eager
from refine_server.kernels.delta_rule import naive as delta_rule_naive
from refine_server.kernels.rms_norm import eager as rms_norm_eager
from refine_server.kernels.rms_norm import naive as rms_norm_naive
from refine_server.kernels.short_conv import eager as short_conv_eager
from refine_server.kernels.short_conv import naive as short_conv_naive
from refine_server.kernels.token_stats import eager as token_stats_eager
from refine_server.kernels.token_stats import naive as token_stats_naive

TOLERANCE = {torch.float64: 1e-11, torch.float32: 2e-5}
DTYPES = pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["fp64", "fp32"])


def random(*shape: int, dtype: torch.dtype, scale: float = 1.0) -> Tensor:
    return torch.randn(*shape, dtype=dtype) * scale


def assert_same(naive, fast, inputs: list[Tensor], dtype: torch.dtype, scale: float = 1.0) -> None:
    """Outputs and, for one random direction, gradients with respect to every input."""
    results = []
    direction = None
    for form in (naive, fast):
        leaves = [x.detach().clone().requires_grad_() for x in inputs]
        outputs = form(*leaves)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        outputs = [o for o in outputs if o.requires_grad]
        direction = direction or [torch.randn_like(o) for o in outputs]
        total = sum((o * d).sum() for o, d in zip(outputs, direction, strict=True))
        gradients = torch.autograd.grad(total, leaves)
        results.append(([o.detach() for o in outputs], gradients))
    (expected, expected_grads), (actual, actual_grads) = results
    tolerance = TOLERANCE[dtype] * scale
    for a, b in zip(expected, actual, strict=True):
        torch.testing.assert_close(b, a, atol=tolerance, rtol=tolerance)
    for a, b in zip(expected_grads, actual_grads, strict=True):
        torch.testing.assert_close(b, a, atol=tolerance * a.abs().max().clamp_min(1).item(), rtol=0)


@DTYPES
@pytest.mark.parametrize("T", [1, 2, 63, 64, 65, 128, 191])
def test_delta_rule(T: int, dtype: torch.dtype) -> None:
    B, H, K, V = 2, 3, 16, 8
    q, k = (torch.nn.functional.normalize(random(B, H, T, K, dtype=dtype), dim=-1) for _ in "qk")
    v, beta = random(B, H, T, V, dtype=dtype), torch.rand(B, H, T, dtype=dtype)
    state = random(B, H, K, V, dtype=dtype)
    assert_same(
        delta_rule_naive.delta_rule,
        delta_rule_eager.delta_rule,
        [q, k, v, beta, state],
        dtype,
        scale=10,
    )


@DTYPES
@pytest.mark.parametrize("T", [2, 64, 70])
def test_delta_states(T: int, dtype: torch.dtype) -> None:
    k = torch.nn.functional.normalize(random(2, 3, T, 16, dtype=dtype), dim=-1)
    v, beta = random(2, 3, T, 8, dtype=dtype), torch.rand(2, 3, T, dtype=dtype)
    inputs = [k, v, beta, random(2, 3, 16, 8, dtype=dtype)]
    assert_same(
        delta_rule_naive.delta_states, delta_rule_eager.delta_states, inputs, dtype, scale=10
    )


def test_delta_rule_states_lie_at_chunk_boundaries() -> None:
    T = CHUNK + 5
    q, k, v = (torch.randn(1, 2, T, 8, dtype=torch.float64) for _ in "qkv")
    k = torch.nn.functional.normalize(k, dim=-1)
    beta = torch.rand(1, 2, T, dtype=torch.float64)
    _, states = delta_rule_eager.delta_rule(q, k, v, beta)
    assert states.shape[2] == 3
    assert not states[:, :, 0].any()
    for index, end in ((1, CHUNK), (2, T)):
        cut = (x[:, :, :end] for x in (q, k, v, beta))
        _, prefix = delta_rule_naive.delta_rule(*cut)
        torch.testing.assert_close(states[:, :, index], prefix[:, :, -1])


def test_delta_rule_ignores_tokens_that_write_nothing() -> None:
    q, k, v = (torch.randn(1, 2, 10, 8, dtype=torch.float64) for _ in "qkv")
    k = torch.nn.functional.normalize(k, dim=-1)
    beta = torch.rand(1, 2, 10, dtype=torch.float64)
    beta[:, :, 6:] = 0
    _, states = delta_rule_eager.delta_rule(q, k, v, beta)
    _, short = delta_rule_eager.delta_rule(*(x[:, :, :6] for x in (q, k, v, beta)))
    torch.testing.assert_close(states[:, :, -1], short[:, :, -1])


@DTYPES
@pytest.mark.parametrize("T", [1, 3, 7])
@pytest.mark.parametrize("own_taps", [False, True])
def test_short_conv(T: int, own_taps: bool, dtype: torch.dtype) -> None:
    B, C, W = 3, 5, 4
    taps = random(B, C, W, dtype=dtype) if own_taps else random(C, W, dtype=dtype)
    inputs = [random(B, W - 1 + T, C, dtype=dtype), taps]
    assert_same(short_conv_naive.short_conv, short_conv_eager.short_conv, inputs, dtype)


@DTYPES
@pytest.mark.parametrize("shape", [(1, 1, 7), (2, 5, 3, 16), (3, 130, 33)])
def test_norms(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    own = shape[0], *(1,) * (len(shape) - 2), shape[-1]
    x = random(*shape, dtype=dtype)
    x[0, 0] = 0.0  # has no direction
    for weight in (shape[-1:], own):
        inputs = [x, random(*weight, dtype=dtype)]
        forms = (partial(form.rms_norm, eps=1e-3) for form in (rms_norm_naive, rms_norm_eager))
        assert_same(*forms, inputs, dtype)
    forms = (partial(form.l2_norm, eps=1e-3) for form in (rms_norm_naive, rms_norm_eager))
    assert_same(*forms, [x], dtype)


def test_norms_of_bf16_round_as_their_definition() -> None:
    x, weight = torch.randn(3, 9, 24).bfloat16(), torch.rand(24).bfloat16()
    expected = rms_norm_naive.rms_norm(x, weight, 1e-5)
    assert torch.equal(rms_norm_eager.rms_norm(x, weight, 1e-5), expected)
    assert torch.equal(rms_norm_eager.l2_norm(x, 1e-5), rms_norm_naive.l2_norm(x, 1e-5))


@DTYPES
@pytest.mark.parametrize("N", [1, 130, 257])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_token_stats(N: int, temperature: float, dtype: torch.dtype) -> None:
    hidden, weight = random(N, 16, dtype=dtype), random(101, 16, dtype=dtype, scale=0.5)
    targets = torch.randint(0, 101, (N,))

    def run(form):
        return lambda h, w: form(h, w, targets, temperature)

    forms = token_stats_naive.token_stats, token_stats_eager.token_stats
    assert_same(run(forms[0]), run(forms[1]), [hidden, weight], dtype, scale=5)
    expected, actual = (form(hidden, weight, targets, temperature)[1] for form in forms)
    torch.testing.assert_close(actual, expected, atol=TOLERANCE[dtype] * 5, rtol=1e-5)


def test_token_stats_holds_no_vocabulary_matrix_for_the_backward_pass() -> None:
    hidden = torch.randn(300, 8, requires_grad=True)
    weight, targets = torch.randn(5_000, 8), torch.randint(0, 5_000, (300,))
    largest = 0

    def note(tensor: Tensor) -> Tensor:
        nonlocal largest
        largest = max(largest, tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda t: t):
        token_stats_eager.token_stats(hidden, weight, targets)
    assert largest <= hidden.numel()


ATTENTION_CASES = [  # B, R (0: no prefix), T, S, window
    (2, 0, 7, 7, None),
    (2, 0, 1, 9, None),
    (2, 0, 3, 9, None),
    (1, 0, 263, 263, None),
    (2, 0, 7, 7, 3),
    (1, 0, 16, 16, 4),
    (2, 0, 9, 9, 1),
    (2, 0, 9, 9, 8),
    (2, 0, 9, 9, 9),
    (6, 1, 4, 4, None),
    (6, 2, 1, 5, None),
    (6, 2, 3, 5, 4),
    (3, 3, 4, 6, None),
    (3, 3, 1, 6, None),
    (3, 3, 1, 6, 8),
]


@DTYPES
@pytest.mark.parametrize(("B", "R", "T", "S", "window"), ATTENTION_CASES)
def test_attention(B: int, R: int, T: int, S: int, window: int | None, dtype: torch.dtype) -> None:
    """Values are narrower than keys, as those of latent attention."""
    heads, kv_heads, D, V, P = 4, 2, 8, 5, 11
    inputs = [random(B, heads, T, D, dtype=dtype)]
    inputs += [random(B, kv_heads, S, width, dtype=dtype) for width in (D, V)]
    if R:
        inputs += [random(R, kv_heads, P, width, dtype=dtype) for width in (D, V)]
    length = torch.randint(1, P + 1, (B,)) if R else None

    def run(form):
        def call(q, k, v, prefix_k=None, prefix_v=None):
            return form(q, k, v, prefix_k, prefix_v, length, window=window)

        return call

    forms = attention_naive.attention, attention_eager.attention
    assert_same(run(forms[0]), run(forms[1]), inputs, dtype)


@DTYPES
@pytest.mark.parametrize(
    ("B", "R", "T", "S"), [(1, 1, 1, 1), (1, 1, 3, 5), (6, 2, 1, 4), (6, 1, 3, 3)]
)
@pytest.mark.parametrize("whole", [True, False], ids=["all of the prefix", "some of it"])
def test_attention_over_prefix_and_tail(
    monkeypatch, B: int, R: int, T: int, S: int, whole: bool, dtype: torch.dtype
) -> None:
    monkeypatch.setattr(attention_eager, "LONG_PREFIX", 1)
    heads, kv_heads, D, P = 6, 2, 8, 11
    q = random(B, heads, T, D, dtype=dtype)
    k, v = (random(B, kv_heads, S, D, dtype=dtype) for _ in "kv")
    prefix_k, prefix_v = (random(R, kv_heads, P, D, dtype=dtype) for _ in "kv")
    length = torch.full((B,), P) if whole else torch.randint(0, P + 1, (B,))

    def run(form):
        return lambda *inputs: form(*inputs, length, 0.3)

    forms = attention_naive.attention, attention_eager.attention
    assert_same(run(forms[0]), run(forms[1]), [q, k, v, prefix_k, prefix_v], dtype)
