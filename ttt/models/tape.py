"""A graph that is cut into parts, so that its backward pass goes piece by piece, too.

Autograd computes the gradient of a graph in one call. Here the results of each part are made leaves
of what follows, and the backward pass hands their gradients to the part that made them, from the
last part to the first. The gradient is that of the whole graph, by the chain rule. A part can be
forgotten and computed again for its gradient (activation checkpointing), so that the activations of
one part are in memory at a time.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, Protocol, TypeVar, cast

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, get_gradient_edge
from typing_extensions import override

from refine_server.kernels.delta_rule.memory import LateGradients
from refine_server.ttt.fast_weights import FastWeights
from refine_server.ttt.models.device import synchronize
from refine_server.ttt.pieces import Pieces

T = TypeVar("T")
L = TypeVar("L")


class Graph:
    """One graph, which is not cut: ``backward`` of what is computed from it does everything."""

    def cut(
        self,
        make: Callable[[], T],
        *,
        recompute: bool = False,
        on_backward: Callable[[float], None] | None = None,
    ) -> T:
        """Compute something; a ``Tape`` ends a part of the graph here.

        Args:
            make: returns tensors in tuples, lists, dataclasses and fast weights. It may read
                nothing that is in the graph of another part, but for what ``cut`` returned.
            recompute: whether the part is forgotten, and computed again for its gradient.
            on_backward: called with the seconds of the part's backward pass.
        """
        return make()

    def cat(self, tensors: Sequence[Tensor], dim: int) -> Tensor:
        """Concatenate tensors that ``cut`` returned; a ``Tape`` keeps no second copy of them."""
        return torch.cat(list(tensors), dim=dim)

    def narrow(self, tensor: Tensor, dim: int, start: int, length: int) -> Tensor:
        """Return a part of a tensor that ``cut`` or ``cat`` returned, without a copy.

        Autograd gives each part a gradient of the size of the whole; a ``Tape`` does not.
        """
        return tensor.narrow(dim, start, length)


class _Piece(Protocol):
    def backward(self) -> None:
        """Add the gradients of what the piece has read, from those of its results."""


@dataclass(frozen=True, slots=True)
class _Part:
    make: Callable[[], Any] | None
    """Computes the part's results again; None where ``results`` are kept."""
    results: list[GradientEdge]
    """Where the part's graph ends. The values of the results are not kept here."""
    leaves: list[Tensor]
    """What follows reads these in the place of the results."""
    late: list[LateGradients]
    """Where what follows leaves gradients apart from those of the leaves."""
    on_backward: Callable[[float], None] | None

    def backward(self) -> None:
        began = time.monotonic()
        results = self.results
        if self.make is not None:
            made = self.make()
            results = _in_graph(made)
            for again, late in zip(_found(made, LateGradients), self.late, strict=True):
                again.left = late.left
        used = [
            (r, x.grad) for r, x in zip(results, self.leaves, strict=True) if x.grad is not None
        ]
        if used:
            torch.autograd.backward([r for r, _ in used], [grad for _, grad in used])
        for leaf in self.leaves:
            leaf.grad = None
        if self.on_backward is not None:
            synchronize(self.leaves[0].device)
            self.on_backward(time.monotonic() - began)


@dataclass(frozen=True, slots=True)
class _Concatenation:
    parts: Sequence[Tensor]
    """Leaves, whose values are views of the whole."""
    whole: Tensor
    """A leaf, too."""
    dim: int

    def backward(self) -> None:
        grad, self.whole.grad = self.whole.grad, None
        if grad is None:
            return
        sizes = [part.shape[self.dim] for part in self.parts]
        for part, own in zip(self.parts, grad.split(sizes, dim=self.dim), strict=True):
            if part.requires_grad:
                part.grad = own.contiguous() if part.grad is None else part.grad + own


@dataclass(frozen=True, slots=True)
class _Narrow:
    part: Tensor
    """A leaf, whose values are a view of the whole."""
    whole: Tensor
    """A leaf, too."""
    dim: int
    start: int

    def backward(self) -> None:
        grad, self.part.grad = self.part.grad, None
        if grad is None:
            return
        if self.whole.grad is None:
            self.whole.grad = torch.zeros_like(self.whole)
        self.whole.grad.narrow(self.dim, self.start, grad.shape[self.dim]).add_(grad)


class Tape(Graph):
    """The parts of a graph, in the order in which they were computed.

    A tape is used up by its backward pass. Whoever drops it frees all its parts.
    """

    def __init__(self) -> None:
        self._parts: list[_Piece] = []

    @override
    def cut(
        self,
        make: Callable[[], T],
        *,
        recompute: bool = False,
        on_backward: Callable[[float], None] | None = None,
    ) -> T:
        if not torch.is_grad_enabled():
            return make()
        made = make()
        leaves: list[Tensor] = []

        def leaf(tensor: Tensor) -> Tensor:
            if not _is_in_graph(tensor):
                return tensor
            leaves.append(tensor.detach().requires_grad_())
            return leaves[-1]

        results = [] if recompute else _in_graph(made)
        cut = map_tensors(made, leaf)
        if leaves:
            again = make if recompute else None
            late = _found(made, LateGradients)
            self._parts.append(_Part(again, results, leaves, late, on_backward))
        return cut

    @override
    def cat(self, tensors: Sequence[Tensor], dim: int) -> Tensor:
        whole = torch.cat([tensor.detach() for tensor in tensors], dim=dim)
        if not torch.is_grad_enabled() or not any(tensor.requires_grad for tensor in tensors):
            return whole
        sizes = [tensor.shape[dim] for tensor in tensors]
        for tensor, view in zip(tensors, whole.split(sizes, dim=dim), strict=True):
            tensor.data = view
        whole.requires_grad_()
        self._parts.append(_Concatenation(tensors, whole, dim))
        return whole

    @override
    def narrow(self, tensor: Tensor, dim: int, start: int, length: int) -> Tensor:
        part = tensor.detach().narrow(dim, start, length)
        if torch.is_grad_enabled() and tensor.requires_grad:
            self._parts.append(_Narrow(part.requires_grad_(), tensor, dim, start))
        return part

    def backward(self) -> Pieces[None]:
        """Add the gradients of the leaves that the parts began with, one part in each piece.

        The gradients of what was computed behind the last part must have been computed.
        """
        while self._parts:
            self._parts.pop().backward()
            yield


def map_tensors(value: T, fn: Callable[[Tensor], Tensor]) -> T:
    """Replace the tensors in tuples, lists, dataclasses and fast weights; keep everything else."""
    return _map(value, Tensor, fn)


def _map(value: T, kind: type[L], fn: Callable[[L], L]) -> T:
    if isinstance(value, kind):
        return cast(T, fn(value))
    if isinstance(value, FastWeights):
        return cast(T, value.map(lambda tensor: _map(tensor, kind, fn)))
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return cast(T, type(value)(*(_map(item, kind, fn) for item in value)))
    if isinstance(value, tuple | list):
        return cast(T, type(value)(_map(item, kind, fn) for item in value))
    if is_dataclass(value) and not isinstance(value, type):
        own = {f.name: _map(getattr(value, f.name), kind, fn) for f in fields(value)}
        return cast(T, type(value)(**own))
    return value


def tensors_of(value: object) -> list[Tensor]:
    """Return the tensors in ``value``, in the order of ``map_tensors``."""
    return _found(value, Tensor)


def _found(value: object, kind: type[L]) -> list[L]:
    found: list[L] = []

    def note(own: L) -> L:
        found.append(own)
        return own

    _map(value, kind, note)
    return found


def _is_in_graph(tensor: Tensor) -> bool:
    """Return whether a tensor was computed in the graph; a leaf needs no other in its place."""
    return tensor.requires_grad and not tensor.is_leaf


def _in_graph(value: object) -> list[GradientEdge]:
    return [get_gradient_edge(tensor) for tensor in tensors_of(value) if _is_in_graph(tensor)]
