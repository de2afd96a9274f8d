"""Attention over a shared prefix and a tail, part by part, equals one softmax over both."""

from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from refine_server.kernels.cascade_attention import eager, naive, query_gradient

HEADS, WIDTH = 2, 8
SCALE = 0.3
Sizes = tuple[int, int, int, int, int]
SIZES = pytest.mark.parametrize(  # B rows, R prefixes, N queries, P and S tokens
    "sizes",
    [(1, 1, 1, 1, 1), (1, 1, 3, 67, 5), (6, 2, 1, 33, 4), (6, 1, 9, 129, 9), (2, 2, 5, 0, 7)],
)


def inputs(B: int, R: int, N: int, P: int, S: int, dtype: torch.dtype) -> list[Tensor]:
    shapes = [(B, N), (B, S), (B, S), (R, P), (R, P)]
    return [torch.randn(rows, HEADS, T, WIDTH, dtype=dtype) for rows, T in shapes]


def attend(form: ModuleType, *settings: Any) -> Callable[..., Tensor]:
    return lambda *tensors: form.cascade_attention(*tensors, *settings)


def lengths(B: int, P: int) -> Tensor:
    """Draw how much of its prefix a row sees; neighbours may see equally much, or nothing."""
    return torch.randint(0, P + 1, (B,)) // 2 * 2


def causal_mask(N: int, S: int, dtype: torch.dtype) -> Tensor:
    """Make the mask of queries that are the last N of S tokens, [N, S]."""
    unseen = torch.ones(N, S, dtype=torch.bool).triu(S - N + 1)
    return torch.zeros(N, S, dtype=dtype).masked_fill_(unseen, -torch.inf)


@SIZES
def test_every_query_sees_all(
    sizes: Sizes, eager_dtype: torch.dtype, eager_matches: Callable[..., None]
) -> None:
    eager_matches(attend(naive, SCALE), attend(eager, SCALE), inputs(*sizes, eager_dtype))


@SIZES
def test_rows_see_parts_of_their_prefix(
    sizes: Sizes, eager_dtype: torch.dtype, eager_matches: Callable[..., None]
) -> None:
    B, R, N, P, S = sizes
    N = min(N, S)
    settings = SCALE, lengths(B, P), causal_mask(N, S, eager_dtype)
    tensors = inputs(B, R, N, P, S, eager_dtype)
    eager_matches(attend(naive, *settings), attend(eager, *settings), tensors)


@SIZES
def test_a_prefix_may_need_no_gradient(
    monkeypatch: pytest.MonkeyPatch,
    sizes: Sizes,
    eager_dtype: torch.dtype,
    eager_matches: Callable[..., None],
) -> None:
    """The gradients of queries and tail are the same, however many blocks they are computed in."""
    monkeypatch.setattr(query_gradient, "QUERIES", 4)
    monkeypatch.setattr(query_gradient, "SCORES", 64)
    B, _, _, P, _ = sizes
    *own, prefix_k, prefix_v = inputs(*sizes, eager_dtype)
    settings = prefix_k, prefix_v, SCALE, lengths(B, P)
    eager_matches(attend(naive, *settings), attend(eager, *settings), own)


@pytest.mark.parametrize("form", [naive, eager], ids=["naive", "eager"])
def test_a_row_sees_its_prefix_cut_to_its_length(
    form: ModuleType, eager_dtype: torch.dtype
) -> None:
    B, R, N, P, S = 6, 2, 3, 11, 4
    q, k, v, prefix_k, prefix_v = inputs(B, R, N, P, S, eager_dtype)
    length = torch.tensor([0, 4, 11, 7, 7, 10])
    together = form.cascade_attention(q, k, v, prefix_k, prefix_v, SCALE, length)
    for b, end in enumerate(length.tolist()):
        row = slice(b, b + 1)
        own = (x[b // (B // R), :, :end][None] for x in (prefix_k, prefix_v))
        alone = naive.cascade_attention(q[row], k[row], v[row], *own, SCALE)
        torch.testing.assert_close(together[row], alone)


def test_without_a_graph_it_is_the_same(eager_dtype: torch.dtype) -> None:
    tensors = inputs(6, 2, 3, 11, 4, eager_dtype)
    with torch.no_grad():
        actual = eager.cascade_attention(*tensors, SCALE)
    assert torch.equal(actual, eager.cascade_attention(*tensors, SCALE))
    assert not actual.requires_grad


def test_on_another_device_the_definition_runs() -> None:
    tensors = [x.to("meta") for x in inputs(6, 2, 3, 11, 4, torch.float32)]
    assert eager.cascade_attention(*tensors, SCALE).shape == (6, HEADS, 3, WIDTH)
