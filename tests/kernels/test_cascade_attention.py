"""Attention over a shared prefix and a tail, part by part, equals one softmax over both."""

from collections.abc import Callable
from types import ModuleType

import pytest
import torch
from torch import Tensor

from refine_server.kernels.cascade_attention import eager, naive

HEADS, WIDTH = 2, 8
SIZES = pytest.mark.parametrize(  # B rows, R prefixes, N queries, P and S tokens
    ("B", "R", "N", "P", "S"),
    [(1, 1, 1, 1, 1), (1, 1, 3, 67, 5), (6, 2, 1, 33, 4), (6, 1, 9, 129, 9), (2, 2, 5, 0, 7)],
)
WINDOW = 6


def inputs(B: int, R: int, N: int, P: int, S: int, dtype: torch.dtype) -> list[Tensor]:
    shapes = [(B, N), (B, S), (B, S), (R, P), (R, P)]
    return [torch.randn(rows, HEADS, T, WIDTH, dtype=dtype) for rows, T in shapes]


def window_masks(
    B: int, R: int, N: int, P: int, S: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Make masks of queries that see the last WINDOW tokens; the n-th is token P + S - N + n."""
    at = P + S - N + torch.arange(N)[:, None]
    behind = at - torch.arange(P + S)  # [N, P + S]
    seen = (behind >= 0) & (behind < WINDOW)
    on_prefix, on_tail = seen.tensor_split([P], dim=1)
    lowest = torch.finfo(dtype).min / 2
    prefix_mask = torch.zeros(N, P, dtype=dtype).masked_fill_(~on_prefix, lowest)
    tail_mask = torch.zeros(N, S, dtype=dtype).masked_fill_(~on_tail, -torch.inf)
    return prefix_mask.repeat(B // R, 1).expand(R, 1, -1, -1), tail_mask


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
def test_queries_of_a_window(
    B: int,
    R: int,
    N: int,
    P: int,
    S: int,
    eager_dtype: torch.dtype,
    eager_matches: Callable[..., None],
) -> None:
    N = min(N, S)
    masks = window_masks(B, R, N, P, S, eager_dtype)

    def run(form: ModuleType) -> Callable[..., Tensor]:
        return lambda *tensors: form.cascade_attention(*tensors, 0.3, *masks)

    eager_matches(run(naive), run(eager), inputs(B, R, N, P, S, eager_dtype))


@pytest.mark.parametrize("form", [naive, eager], ids=["naive", "eager"])
def test_rows_may_see_different_parts_of_their_prefix(
    form: ModuleType, eager_dtype: torch.dtype
) -> None:
    """The mask of a row's queries is the row's own: it equals a prefix cut to that length."""
    B, R, N, P, S = 6, 2, 3, 11, 4
    q, k, v, prefix_k, prefix_v = inputs(B, R, N, P, S, eager_dtype)
    length = torch.tensor([0, 4, 11, 7, 1, 10])
    unseen = torch.arange(P) >= length[:, None]  # [B, P]
    mask = torch.zeros(B, P, dtype=eager_dtype)
    mask.masked_fill_(unseen, torch.finfo(eager_dtype).min / 2)
    mask = mask.view(R, 1, B // R, 1, P).expand(-1, -1, -1, N, -1).reshape(R, 1, B // R * N, P)
    together = form.cascade_attention(q, k, v, prefix_k, prefix_v, 0.3, mask)
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
