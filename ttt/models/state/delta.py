"""State and trace of delta-rule layers: an associative memory, and a convolution's last inputs."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor
from typing_extensions import override

from refine_server.kernels import dispatch
from refine_server.kernels.delta_rule import CHUNK
from refine_server.kernels.delta_rule.memory import Memory, join
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
        boundary = positions // CHUNK  # [R, G]
        memory = self.memory.before(positions)  # [RG, H, K, V]
        offset = torch.arange(CHUNK, device=positions.device)
        tokens = boundary[..., None] * CHUNK + offset  # [R, G, CHUNK]
        unread = tokens >= positions[..., None]
        tokens = tokens.clamp_max(self.k.shape[2] - 1)

        def gather(x: Tensor) -> Tensor:  # [R, H, T, ...] -> [RG, H, CHUNK, ...]
            return x.transpose(1, 2)[row[..., None], tokens].flatten(0, 1).transpose(1, 2)

        k, v = gather(self.k), gather(self.v)
        unread = unread.flatten(0, 1)[:, None]  # [RG, 1, CHUNK]
        beta = gather(self.beta).masked_fill(unread, 0.0)
        g = None if self.g is None else gather(self.g).masked_fill(unread[..., None], 0.0)
        memory = dispatch.delta_state(k, v, g, beta, memory)
        return DeltaState(memory, self._conv_at(row, positions))

    def _conv_at(self, row: Tensor, positions: Tensor) -> Tensor | None:
        if self.conv_inputs is None:
            return None
        width = self.conv_inputs.shape[1] - self.k.shape[2]  # W - 1
        last = positions[..., None] + torch.arange(width, device=positions.device)
        return self.conv_inputs[row[..., None], last].flatten(0, 1)  # [RG, W - 1, C]

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


def with_past_inputs(past: Tensor | None, x: Tensor, width: int) -> Tensor:
    """Put a convolution's past inputs, or zeros, before its new ones x: [B, W - 1 + T, C]."""
    if past is None:
        return F.pad(x, (0, 0, width - 1, 0))
    return torch.cat([past, x], dim=1)
