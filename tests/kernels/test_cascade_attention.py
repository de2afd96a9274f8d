"""Attention over a shared prefix and a tail, part by part, equals one softmax over both."""

from collections.abc import Callable
from types import ModuleType

import pytest
import torch
from torch import Tensor

from refine_server.kernels.cascade_attention import eager, naive, query_gradient

HEADS, WIDTH = 2, 8
SIZES = pytest.mark.parametrize(  # B rows, R prefixes, N queries, P and S tokens
    ("B", "R", "N", "P", "S"),
    [(1, 1, 1, 1, 1), (1, 1, 3, 67, 5), (6, 2, 1, 33, 4), (6, 1, 9, 129, 9), (2, 2, 5, 0, 7)],
)


def inputs(B: int, R: int, N: int, P: int, S: int, dtype: torch.dtype) -> list[Tensor]:
    shapes = [(B, N), (B, S), (B, S), (R, P), (R, P)]
    return [torch.randn(rows, HEADS, T, WIDTH, dtype=dtype) for rows, T in shapes]


def lengths(B: int, P: int) -> Tensor:
    """Draw how much of its prefix a row sees; neighbours may see equally much, or nothing."""
    return torch.randint(0, P + 1, (B,)) // 2 * 2


def causal_mask(N: int, S: int, dtype: torch.dtype) -> Tensor:
    """Make the mask of queries that are the last N of S tokens, [N, S]."""
    unseen = torch.ones(N, S, dtype=torch.bool).triu(S - N + 1)
    return torch.zeros(N, S, dtype=dtype).masked_fill_(unseen, -torch.inf)


@SIZES
def test_every_query_sees_all(
    B: int,
    R: int,
    N: int,
    P: int,
    S: int,
    eager_dtype: torch.dtype,
    eager_matches: Callable[..., None],
) -> None:
    def run(form: ModuleType) -> Callable[..., Tensor]:
        return lambda *tensors: form.cascade_attention(*tensors, 0.3)

    eager_matches(run(naive), run(eager), inputs(B, R, N, P, S, eager_dtype))


@SIZES
def test_rows_see_parts_of_their_prefix(
    B: int,
    R: int,
    N: int,
    P: int,
    S: int,
    eager_dtype: torch.dtype,
    eager_matches: Callable[..., None],
) -> None:
    N = min(N, S)
    settings = 0.3, lengths(B, P), causal_mask(N, S, eager_dtype)

    def run(form: ModuleType) -> Callable[..., Tensor]:
        return lambda *tensors: form.cascade_attention(*tensors, *settings)

    eager_matches(run(naive), run(eager), inputs(B, R, N, P, S, eager_dtype))


@SIZES
def test_a_prefix_may_need_no_gradient(
    monkeypatch: pytest.MonkeyPatch,
    B: int,
    R: int,
    N: int,
    P: int,
    S: int,
    eager_dtype: torch.dtype,
    eager_matches: Callable[..., None],
) -> None:
    """The gradients of queries and tail are the same, however many blocks they are computed in."""
    monkeypatch.setattr(query_gradient, "QUERIES", 4)
    monkeypatch.setattr(query_gradient, "SCORES", 64)
    *own, prefix_k, prefix_v = inputs(B, R, N, P, S, eager_dtype)
    settings = 0.3, lengths(B, P)

    def run(form: ModuleType) -> Callable[..., Tensor]:
        return lambda *tensors: form.cascade_attention(*tensors, prefix_k, prefix_v, *settings)

    eager_matches(run(naive), run(eager), own)


@pytest.mark.parametrize("form", [naive, eager], ids=["naive", "eager"])
def test_a_row_sees_its_prefix_cut_to_its_length(
    form: ModuleType, eager_dtype: torch.dtype
) -> None:
    B, R, N, P, S = 6, 2, 3, 11, 4
    q, k, v, prefix_k, prefix_v = inputs(B, R, N, P, S, eager_dtype)
    length = torch.tensor([0, 4, 11, 7, 7, 10])
    together = form.cascade_attention(q, k, v, prefix_k, prefix_v, 0.3, length)
    for b, end in enumerate(length.tolist()):
        row = slice(b, b + 1)
        own = (x[b // (B // R), :, :end][None] for x in (prefix_k, prefix_v))
        alone = naive.cascade_attention(q[row], k[row], v[row], *own, 0.3)
        torch.testing.assert_close(together[row], alone)


def test_without_a_graph_it_is_the_same(eager_dtype: torch.dtype) -> None:
    tensors = inputs(6, 2, 3, 11, 4, eager_dtype)
    with torch.no_grad():
        actual = eager.cascade_attention(*tensors, 0.3)
    assert torch.equal(actual, eager.cascade_attention(*tensors, 0.3))
    assert not actual.requires_grad


def test_on_another_device_the_definition_runs() -> None:
    tensors = [x.to("meta") for x in inputs(6, 2, 3, 11, 4, torch.float32)]
    assert eager.cascade_attention(*tensors, 0.3).shape == (6, HEADS, 3, WIDTH)
