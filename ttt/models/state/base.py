"""The protocol of a layer's state and of its trace, and the model's state that is made of them.

Reading T tokens takes a layer from one state to the next and leaves a trace, from which the state
after any prefix of those tokens can be made, in the graph: rollouts branch off there.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor
from typing_extensions import override

from refine_server.ttt.models.state.storage import storable

Cat = Callable[[list[Tensor], int], Tensor]
"""Concatenates tensors along a dimension."""


class LayerState(ABC):
    """One layer's memory of the tokens that a batch of B sequences has read; never changed."""

    __slots__ = ()

    stacks: ClassVar[bool] = False
    """Whether states after different numbers of tokens go into one batch (``stack``, ``split``)."""
    truncates: ClassVar[bool] = False
    """Whether a state can give up its last tokens (``truncate``)."""
    joins_segments: ClassVar[bool] = False
    """Whether traces of consecutive segments join into one (``Trace.join``)."""
    views_prefixes: ClassVar[bool] = False
    """Whether a state holds the states before all its tokens (``prefixes``)."""

    @abstractmethod
    def repeat(self, n: int) -> Self:
        """Repeat every row n times, copies of a row side by side."""

    @abstractmethod
    def detach(self) -> Self:
        """Return the same values outside any graph."""

    @property
    @abstractmethod
    def nbytes(self) -> int:
        """Bytes held, shared prefixes counted once."""

    @classmethod
    def stack(cls, rows: Sequence[Self]) -> "LayerState":
        """Put states of one row each into one batch."""
        raise TypeError(f"states of {cls.__name__} cannot be stacked")

    def split(self) -> Sequence["LayerState"]:
        """Return the rows of a batch as states of one row each."""
        raise TypeError(f"states of {type(self).__name__} cannot be split")

    def truncate(self, n: int) -> Self:
        """Return the state as it was n tokens ago; ValueError where it does not hold them."""
        raise TypeError(f"states of {type(self).__name__} cannot be truncated")

    def prefixes(self, lengths: Tensor) -> Self:
        """Return the states of one row after its first lengths [G] tokens: G rows, no copies."""
        raise TypeError(f"states of {type(self).__name__} do not hold those of their prefixes")

    def joined(self) -> Self:
        """Return the state of one row with all that it has read in one prefix (``prefixes``)."""
        raise TypeError(f"states of {type(self).__name__} do not hold those of their prefixes")


class Trace(ABC):
    """What a layer's forward left behind: enough to know its state after any prefix."""

    __slots__ = ()

    branches_anywhere: ClassVar[bool] = False
    """Whether ``at`` also works where the tokens continued from a state."""

    @abstractmethod
    def final(self) -> LayerState:
        """Return the state after the last token."""

    @abstractmethod
    def at(self, positions: Tensor) -> LayerState:
        """Return the state before token positions[r, g] of row r, in the graph.

        positions: [R, G]. The state has R G rows.
        """

    @classmethod
    def stack(cls, traces: Sequence[Self]) -> "Trace":
        """Put traces of whole sequences into one batch, padded at the end; without gradients.

        A padded row's states are those before its own end; ``final`` must not be called.
        """
        raise TypeError(f"traces of {cls.__name__} cannot be stacked")

    @classmethod
    def join(cls, segments: Sequence[Self]) -> "Trace":
        """Make one trace of those of consecutive segments, as of one forward over all tokens."""
        raise TypeError(f"traces of {cls.__name__} cannot be joined")

    @classmethod
    def state_after(cls, segments: Sequence[Self]) -> LayerState:
        """Return the state after consecutive segments, the first of which began a sequence."""
        return cls.join(segments).final()

    @classmethod
    def in_graph(cls, segments: Sequence[Self], cat: Cat) -> "Trace":
        """Make a trace for as long as one step lasts, which copies none of the segments.

        Args:
            segments: their traces, in a graph.
            cat: concatenates tensors of the segments without keeping a second copy.
        """
        return SegmentedTrace(segments)

    @classmethod
    def states_in(cls, segments: Sequence[Self], positions: Tensor) -> LayerState:
        """Do what ``at`` does for the tokens of consecutive segments, from the first one on."""
        return cls.join(segments).at(positions)

    def own(self) -> Self:
        """Return the trace without the state that the tokens continued from.

        It is enough for ``join``, which has that state from the segments before.
        """
        return self


@dataclass(frozen=True, slots=True)
class SegmentedTrace(Trace):
    """The traces of consecutive segments, the first of which began a sequence.

    What a state needs is taken out of the segments when it is asked for.
    """

    segments: Sequence[Trace]

    @override
    def final(self) -> LayerState:
        return self.segments[0].state_after(self.segments)

    @override
    def at(self, positions: Tensor) -> LayerState:
        return self.segments[0].states_in(self.segments, positions)


@storable
@dataclass(frozen=True, slots=True)
class State:
    """A model's memory of the tokens that B sequences have read."""

    layers: tuple[LayerState, ...]
    """One state a layer."""
    position: Tensor
    """[B], how many tokens each row has read."""

    def repeat(self, n: int) -> "State":
        """Repeat every row n times, copies of a row side by side."""
        layers = tuple(layer.repeat(n) for layer in self.layers)
        return State(layers, self.position.repeat_interleave(n))

    def detach(self) -> "State":
        """Return the same values outside any graph."""
        return State(tuple(layer.detach() for layer in self.layers), self.position)

    def joined(self) -> "State":
        """Make one prefix of the keys and values that attention to all tokens has read so far.

        The state is of one row; what continues from it then attends to one long prefix.
        """
        layers = (layer.joined() if layer.views_prefixes else layer for layer in self.layers)
        return State(tuple(layers), self.position)

    def truncate(self, n: int) -> "State":
        """Return the state as it was n tokens ago.

        Raises:
            TypeError: a layer's state does not keep its tokens apart (``truncates``).
            ValueError: a layer has read fewer than n tokens since the state that it started from.
        """
        if n == 0:
            return self
        return State(tuple(layer.truncate(n) for layer in self.layers), self.position - n)

    @staticmethod
    def stack(states: Sequence["State"]) -> "State":
        """Put states of one row each into one batch; ``split`` takes it apart again."""
        if len(states) == 1:
            return states[0]
        layers = zip(*(state.layers for state in states), strict=True)
        position = torch.cat([state.position for state in states])
        return State(tuple(rows[0].stack(rows) for rows in layers), position)

    def split(self) -> list["State"]:
        """Return the rows as states of one row each."""
        if self.position.shape[0] == 1:
            return [self]
        layers = zip(*(layer.split() for layer in self.layers), strict=True)
        return [State(*row) for row in zip(layers, self.position.split(1), strict=True)]

    @property
    def nbytes(self) -> int:
        """Bytes held, shared prefixes counted once."""
        return sum(layer.nbytes for layer in self.layers)


def cat_padded(tensors: Sequence[Tensor], dim: int) -> Tensor:
    """Concatenate along dimension 0 tensors of different size in ``dim``, padded with zeros."""
    longest = max(t.shape[dim] for t in tensors)
    rows = []
    for t in tensors:
        missing = longest - t.shape[dim]
        rows.append(F.pad(t, (0, 0) * (t.ndim - 1 - dim) + (0, missing)) if missing else t)
    return torch.cat(rows)
