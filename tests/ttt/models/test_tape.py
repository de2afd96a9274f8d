"""A tape gives the gradient of one graph, part by part, and frees what it has used."""

import gc
import weakref
from functools import partial

import torch
from torch import Tensor

from refine_server.ttt.models.tape import Graph, Tape
from refine_server.ttt.pieces import run_pieces


def chain(w: Tensor, graph: Graph, recompute: bool = False) -> Tensor:
    """Three parts, each of which reads what both parts before it made."""
    a, b = graph.cut(lambda: (w.sin(), w * 2), recompute=recompute)
    c = graph.cut(lambda: (a * b).cumsum(0) + w, recompute=recompute)
    return (graph.cut(lambda: c * a, recompute=recompute) * b).sum()


def gradient(graph: Graph, recompute: bool = False) -> Tensor:
    w = torch.arange(1.0, 6.0, dtype=torch.float64).requires_grad_()
    chain(w, graph, recompute).backward()
    if isinstance(graph, Tape):
        run_pieces(graph.backward())
    assert w.grad is not None
    return w.grad


def test_the_gradient_is_that_of_one_graph() -> None:
    expected = gradient(Graph())
    torch.testing.assert_close(gradient(Tape()), expected, atol=1e-12, rtol=0)
    torch.testing.assert_close(gradient(Tape(), recompute=True), expected, atol=1e-12, rtol=0)


def test_a_leaf_stays_the_leaf_that_it_is() -> None:
    w, tape = torch.ones(4, requires_grad=True), Tape()
    same, twice = tape.cut(lambda: (w, 2 * w))
    assert same is w
    (same * twice).sum().backward()
    assert sum(1 for _ in tape.backward()) == 1
    assert w.grad is not None
    assert w.grad.tolist() == [4.0] * 4


def test_a_part_is_a_piece_and_is_freed_after_it() -> None:
    w, tape = torch.ones(4, requires_grad=True), Tape()
    made: list[weakref.ref[Tensor]] = []

    def part(x: Tensor) -> Tensor:
        inner = x.exp()
        made.append(weakref.ref(inner))
        return inner * inner

    first = tape.cut(lambda: part(w))
    tape.cut(lambda: part(first)).sum().backward()
    pieces = tape.backward()
    assert [ref() is not None for ref in made] == [True, True]
    next(pieces)
    assert [ref() is not None for ref in made] == [True, False]
    next(pieces)
    assert [ref() is not None for ref in made] == [False, False]


def test_a_dropped_tape_frees_everything() -> None:
    w, tape = torch.ones(4, requires_grad=True), Tape()
    inner: list[weakref.ref[Tensor]] = []

    def part() -> Tensor:
        x = w.exp()
        inner.append(weakref.ref(x))
        return x * x

    total = tape.cut(part).sum()
    total.backward()
    next(tape.backward())
    del tape, total
    gc.collect()
    assert inner[0]() is None


def test_what_was_concatenated_is_kept_once() -> None:
    w = torch.arange(1.0, 7.0, dtype=torch.float64).requires_grad_()
    tape = Tape()
    parts = [tape.cut(partial(torch.mul, x, x)) for x in w.split(2)]
    whole = tape.cat(parts, 0)
    storage = whole.untyped_storage().data_ptr()
    assert {part.untyped_storage().data_ptr() for part in parts} == {storage}
    torch.testing.assert_close(whole, w * w)
    (whole.exp() * 1e-9).sum().backward()
    parts[1].sum().backward()  # a part is also read by itself
    run_pieces(tape.backward())
    own = torch.zeros_like(w).index_fill(0, torch.tensor([2, 3]), 1.0)
    expected = ((w * w).exp() * 1e-9 + own) * 2 * w
    torch.testing.assert_close(w.grad, expected.detach(), atol=1e-12, rtol=0)


def test_parts_of_a_tensor_share_its_gradient() -> None:
    w, tape = torch.arange(1.0, 6.0, dtype=torch.float64).requires_grad_(), Tape()
    square = tape.cut(lambda: w * w)
    first, other = tape.narrow(square, 0, 0, 3), tape.narrow(square, 0, 2, 2)
    assert first.untyped_storage().data_ptr() == square.untyped_storage().data_ptr()
    (first.sum() + other.prod()).backward()
    run_pieces(tape.backward())
    at = torch.arange(1.0, 6.0, dtype=torch.float64).requires_grad_()
    ((at * at)[:3].sum() + (at * at)[2:4].prod()).backward()
    torch.testing.assert_close(w.grad, at.grad, atol=1e-12, rtol=0)


def test_nothing_is_kept_where_no_gradient_is_wanted() -> None:
    tape = Tape()
    w = torch.ones(2, requires_grad=True)
    with torch.no_grad():
        assert not tape.cut(lambda: w * 2).requires_grad
    run_pieces(tape.backward())
    assert w.grad is None
