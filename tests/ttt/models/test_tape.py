"""A tape gives the gradient of one graph, part by part, and frees what it has used."""

import gc
import weakref

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
        return inner

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


def test_nothing_is_kept_where_no_gradient_is_wanted() -> None:
    tape = Tape()
    w = torch.ones(2, requires_grad=True)
    with torch.no_grad():
        assert not tape.cut(lambda: w * 2).requires_grad
    run_pieces(tape.backward())
    assert w.grad is None
