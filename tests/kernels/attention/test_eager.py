"""Attention over a prefix that branches share: the eager form equals the definition."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from refine_server.kernels.attention import eager, naive

CASES = [  # B branches, R rows of the prefix (0: no prefix), T queries, S tokens, window
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


@pytest.mark.parametrize(("B", "R", "T", "S", "window"), CASES)
def test_attention(
    B: int,
    R: int,
    T: int,
    S: int,
    window: int | None,
    eager_dtype: torch.dtype,
    eager_matches: Callable[..., None],
) -> None:
    """Values are narrower than keys, as those of latent attention."""
    heads, kv_heads, D, V, P = 4, 2, 8, 5, 11

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=eager_dtype)

    inputs = [random(B, heads, T, D), *(random(B, kv_heads, S, width) for width in (D, V))]
    if R:
        inputs += [random(R, kv_heads, P, width) for width in (D, V)]
    length = torch.randint(1, P + 1, (B,)) if R else None

    def run(attention: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def call(
            q: Tensor,
            k: Tensor,
            v: Tensor,
            prefix_k: Tensor | None = None,
            prefix_v: Tensor | None = None,
        ) -> Tensor:
            return attention(q, k, v, prefix_k, prefix_v, length, window=window)

        return call

    eager_matches(run(naive.attention), run(eager.attention), inputs)


@pytest.mark.parametrize(
    ("B", "R", "T", "S"), [(1, 1, 1, 1), (1, 1, 3, 5), (6, 2, 1, 4), (6, 1, 3, 3)]
)
@pytest.mark.parametrize("whole", [True, False], ids=["all of the prefix", "some of it"])
def test_a_long_prefix_is_attended_to_by_cascade_attention(
    monkeypatch: pytest.MonkeyPatch,
    B: int,
    R: int,
    T: int,
    S: int,
    whole: bool,
    eager_dtype: torch.dtype,
    eager_matches: Callable[..., None],
) -> None:
    monkeypatch.setattr(eager, "LONG_PREFIX", 1)
    heads, kv_heads, D, P = 6, 2, 8, 11
    q = torch.randn(B, heads, T, D, dtype=eager_dtype)
    k, v = (torch.randn(B, kv_heads, S, D, dtype=eager_dtype) for _ in "kv")
    prefix_k, prefix_v = (torch.randn(R, kv_heads, P, D, dtype=eager_dtype) for _ in "kv")
    length = torch.full((B,), P) if whole else torch.randint(0, P + 1, (B,))

    def run(attention: Callable[..., Tensor]) -> Callable[..., Tensor]:
        return lambda *inputs: attention(*inputs, length, 0.3)

    inputs = [q, k, v, prefix_k, prefix_v]
    eager_matches(run(naive.attention), run(eager.attention), inputs)
