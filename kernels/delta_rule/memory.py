"""The memory of a delta-rule layer while it reads a sequence, from which branches start."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from refine_server.kernels.delta_rule import CHUNK
from refine_server.kernels.host_values import host_values, remember


class Memory(ABC):
    """The memories [B, H, K, V] before a sequence's first token, at boundaries, and after the last.

    A boundary lies before every ``CHUNK``-th token. Memories are dataclasses, so that whoever cuts
    a graph finds their tensors.
    """

    __slots__ = ()

    @abstractmethod
    def last(self) -> Tensor:
        """Return the memory after the last token, [B, H, K, V], in the graph; at least fp32.

        The tensor keeps no other memory alive.
        """

    @abstractmethod
    def before(self, positions: Tensor) -> Tensor:
        """Return the memory at the last boundary at or before each position, in the graph.

        positions: [B, G], tokens of each row. Returns [B G, H, K, V].
        """


class LateGradients:
    """Gradients that branches leave for the op that made a memory, until its backward pass.

    They reach it apart from autograd, so a graph that is computed again takes them over.
    """

    def __init__(self) -> None:
        self.left: list[Any] = []
        """What the op's own functions left; only they know its type."""


@dataclass(frozen=True, slots=True)
class BoundaryStates(Memory):
    """All of them in one tensor, as the op in chunks computes them."""

    states: Tensor
    """[B, H, N + 1, K, V], at the N boundaries and after the last token."""

    @override
    def last(self) -> Tensor:
        return self.states[:, :, -1].clone()

    @override
    def before(self, positions: Tensor) -> Tensor:
        row = torch.arange(positions.shape[0], device=positions.device)[:, None]
        return self.states[row, :, positions // CHUNK].flatten(0, 1)


@dataclass(frozen=True, slots=True)
class OneChunk(Memory):
    """Those of a sequence that is shorter than a chunk: its only boundary is its beginning."""

    first: Tensor
    """[B, H, K, V], before the first token."""
    final: Tensor
    """[B, H, K, V], after the last one."""

    @override
    def last(self) -> Tensor:
        return self.final

    @override
    def before(self, positions: Tensor) -> Tensor:
        return self.first.repeat_interleave(positions.shape[1], 0)


@dataclass(frozen=True, slots=True)
class JoinedMemory(Memory):
    """Those of consecutive segments, each as it was read."""

    segments: tuple[Memory, ...]
    """The segments' own; all but the last are of whole chunks."""
    lengths: tuple[int, ...]
    """Tokens of each segment."""

    @override
    def last(self) -> Tensor:
        return self.segments[-1].last()

    @override
    def before(self, positions: Tensor) -> Tensor:
        host, found, first = host_values(positions), None, 0
        for segment, length in zip(self.segments, self.lengths, strict=True):
            here = [[first <= p for p in row] for row in host]
            if any(map(any, here)):
                within = (positions - first).clamp(0, length)
                remember(within, [[min(max(p - first, 0), length) for p in row] for row in host])
                own = segment.before(within)
                mask = (positions >= first).view(-1, 1, 1, 1)
                found = own if found is None else own.where(mask, found)
            first += length
        assert found is not None
        return found


def join(segments: Sequence[Memory], lengths: Sequence[int]) -> Memory:
    """Join the memories of consecutive segments.

    Args:
        segments: all but the last are of whole chunks.
        lengths: tokens of each.
    """
    states = [m.states for m in segments if isinstance(m, BoundaryStates)]
    if len(states) < len(segments):
        return JoinedMemory(tuple(segments), tuple(lengths))
    return BoundaryStates(torch.cat([*(s[:, :, :-1] for s in states[:-1]), states[-1]], dim=2))
