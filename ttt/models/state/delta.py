"""State and trace of delta-rule layers: an associative memory, and a convolution's last inputs."""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor
from typing_extensions import override

from refine_server.kernels import dispatch
from refine_server.kernels.delta_rule import CHUNK
from refine_server.kernels.delta_rule.memory import JoinedMemory, Memory, join
from refine_server.kernels.host_values import host_values
from refine_server.ttt.models.state.base import LayerState, Trace
from refine_server.ttt.models.state.storage import storable


@storable
@dataclass(frozen=True, slots=True)
class DeltaState(LayerState):
    """A delta-rule layer's memory after some tokens; of constant size."""

    stacks: ClassVar[bool] = True
    joins_segments: ClassVar[bool] = True

    memory: Tensor
    """[B, H, K, V], at least fp32."""
    conv: Tensor | None
    """[B, W - 1, C], the last inputs of the convolution; None without convolution."""

    @override
    def repeat(self, n: int) -> "DeltaState":
        conv = None if self.conv is None else self.conv.repeat_interleave(n, 0)
        return DeltaState(self.memory.repeat_interleave(n, 0), conv)

    @override
    def detach(self) -> "DeltaState":
        return DeltaState(self.memory.detach(), None if self.conv is None else self.conv.detach())

    @property
    @override
    def nbytes(self) -> int:
        return self.memory.nbytes + (0 if self.conv is None else self.conv.nbytes)

    @classmethod
    @override
    def stack(cls, rows: Sequence[Self]) -> "DeltaState":
        convs = [row.conv for row in rows if row.conv is not None]
        memory = torch.cat([row.memory for row in rows])
        return DeltaState(memory, torch.cat(convs) if convs else None)

    @override
    def split(self) -> list["DeltaState"]:
        memories = self.memory.split(1)
        convs = [None] * len(memories) if self.conv is None else self.conv.split(1)
        return [DeltaState(*row) for row in zip(memories, convs, strict=True)]


@dataclass(frozen=True, kw_only=True, slots=True)
class DeltaTrace(Trace):
    """What a delta-rule layer wrote, and its memory at the boundaries of the op's chunks."""

    branches_anywhere: ClassVar[bool] = True

    k: Tensor
    """[B, Hk, T, K], keys; groups of heads share them."""
    v: Tensor
    """[B, H, T, V], values."""
    beta: Tensor
    """[B, H, T], write strengths."""
    memory: Memory
    """[B, H, K, V] each, at the boundaries of the op's chunks."""
    conv_inputs: Tensor | None
    """[B, W - 1 + T, C], the convolution's inputs, those before the first token included."""
    g: Tensor | None = None
    """[B, H, T, 1 | K], the logarithm of the decay; None if nothing decays."""

    @override
    def final(self) -> DeltaState:
        T = self.k.shape[2]
        conv = None if self.conv_inputs is None else self.conv_inputs[:, T:].clone()
        return DeltaState(self.memory.last(), conv)

    @override
    def at(self, positions: Tensor) -> DeltaState:
        """Write, from the chunk boundary before each position, the few tokens up to it.

        Tokens from the position on get beta = 0 and g = 0, so they change nothing. Only the memory
        is replayed: keys and values are already there, so no projection is computed again.
        """
        R, G = positions.shape
        row = torch.arange(R, device=positions.device)[:, None].expand(R, G)
        return self._excerpts(row.flatten(), positions.flatten()).end(self.memory.before(positions))

    def _excerpts(self, row: Tensor, position: Tensor) -> "_Excerpts":
        """Take out the chunks of tokens position [P] of rows row [P], up to these tokens."""
        offset = torch.arange(CHUNK, device=position.device)
        tokens = (position // CHUNK)[:, None] * CHUNK + offset  # [P, CHUNK]
        unread = (tokens >= position[:, None])[:, None]  # [P, 1, CHUNK]
        tokens = tokens.clamp_max(self.k.shape[2] - 1)

        def gather(x: Tensor) -> Tensor:  # [R, H, T, ...] -> [P, H, CHUNK, ...]
            return x.transpose(1, 2)[row[:, None], tokens].transpose(1, 2)

        conv = None
        if self.conv_inputs is not None:
            width = self.conv_inputs.shape[1] - self.k.shape[2]  # W - 1
            last = position[:, None] + torch.arange(width, device=position.device)
            conv = self.conv_inputs[row[:, None], last]  # [P, W - 1, C]
        return _Excerpts(
            k=gather(self.k),
            v=gather(self.v),
            beta=gather(self.beta).masked_fill(unread, 0.0),
            conv=conv,
            g=None if self.g is None else gather(self.g).masked_fill(unread[..., None], 0.0),
        )

    @classmethod
    @override
    def join(cls, segments: Sequence[Self]) -> "DeltaTrace":
        """Join segments, all but the last of which are whole chunks of the op."""
        decays = [t.g for t in segments if t.g is not None]
        return DeltaTrace(
            k=torch.cat([t.k for t in segments], dim=2),
            v=torch.cat([t.v for t in segments], dim=2),
            beta=torch.cat([t.beta for t in segments], dim=2),
            memory=join([t.memory for t in segments], [t.k.shape[2] for t in segments]),
            conv_inputs=cls._join_conv_inputs(segments),
            g=torch.cat(decays, dim=2) if decays else None,
        )

    @staticmethod
    def _join_conv_inputs(segments: Sequence["DeltaTrace"]) -> Tensor | None:
        """Join the first segment's inputs and the new ones of the others: [B, W - 1 + T, C]."""
        inputs = [t.conv_inputs for t in segments if t.conv_inputs is not None]
        if not inputs:
            return None
        width = inputs[0].shape[1] - segments[0].k.shape[2]  # W - 1
        return torch.cat([inputs[0], *(x[:, width:] for x in inputs[1:])], dim=1)

    @classmethod
    @override
    def state_after(cls, segments: Sequence[Self]) -> DeltaState:
        return segments[-1].final()  # the memory holds what came before

    @classmethod
    @override
    def states_in(cls, segments: Sequence[Self], positions: Tensor) -> DeltaState:
        """Gather from each segment what its positions need, and write all of them at once.

        A segment begins with a chunk, so no position needs more than one segment.
        """
        lengths = [t.k.shape[2] for t in segments]
        memory = JoinedMemory(tuple(t.memory for t in segments), tuple(lengths)).before(positions)
        ends = list(accumulate(lengths))
        numbers = [
            bisect_right(ends, position, hi=len(ends) - 1)
            for row in host_values(positions)
            for position in row
        ]  # the segment of each position
        R, G = positions.shape
        row = torch.arange(R, device=positions.device)[:, None].expand(R, G).flatten()
        position, parts, order = positions.flatten(), [], []
        for number, (segment, end) in enumerate(zip(segments, ends, strict=True)):
            own = [i for i, other in enumerate(numbers) if other == number]
            if own:
                start = end - segment.k.shape[2]
                parts.append(segment._excerpts(row[own], position[own] - start))
                order += own
        back = torch.tensor(order, device=positions.device).argsort()
        return _Excerpts.cat(parts).rows(back).end(memory)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Excerpts:
    """What makes the states before P tokens of the memory before their chunks."""

    k: Tensor
    """[P, Hk, CHUNK, K]."""
    v: Tensor
    """[P, H, CHUNK, V]."""
    beta: Tensor
    """[P, H, CHUNK], 0 from the position on."""
    conv: Tensor | None
    """[P, W - 1, C], the last inputs of the convolution; None without convolution."""
    g: Tensor | None
    """[P, H, CHUNK, 1 | K], 0 from the position on; None if nothing decays."""

    @classmethod
    def cat(cls, parts: Sequence["_Excerpts"]) -> "_Excerpts":
        """Concatenate the rows of several."""
        convs = [part.conv for part in parts if part.conv is not None]
        decays = [part.g for part in parts if part.g is not None]
        return cls(
            k=torch.cat([part.k for part in parts]),
            v=torch.cat([part.v for part in parts]),
            beta=torch.cat([part.beta for part in parts]),
            conv=torch.cat(convs) if convs else None,
            g=torch.cat(decays) if decays else None,
        )

    def rows(self, index: Tensor) -> "_Excerpts":
        """Return these rows, in this order."""
        return _Excerpts(
            k=self.k[index],
            v=self.v[index],
            beta=self.beta[index],
            conv=None if self.conv is None else self.conv[index],
            g=None if self.g is None else self.g[index],
        )

    def end(self, memory: Tensor) -> DeltaState:
        """Write the tokens into the memory [P, H, K, V] before their chunks."""
        memory = dispatch.delta_state(self.k, self.v, self.g, self.beta, memory)
        return DeltaState(memory, self.conv)


def with_past_inputs(past: Tensor | None, x: Tensor, width: int) -> Tensor:
    """Put a convolution's past inputs, or zeros, before its new ones x: [B, W - 1 + T, C]."""
    if past is None:
        return F.pad(x, (0, 0, width - 1, 0))
    return torch.cat([past, x], dim=1)
