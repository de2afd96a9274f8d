"""What a model remembers of the tokens it has read, and how branches start in their middle."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Protocol, Self, TypeVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from refine_server.kernels import dispatch
from refine_server.kernels.delta_rule import CHUNK

T = TypeVar("T")


STORABLE: dict[str, type[Any]] = {}
"""Kinds of states that can be written and read back, by name."""


def storable(kind: type[T]) -> type[T]:
    """Register a dataclass or named tuple of tensors, tuples, numbers and other storables."""
    STORABLE[kind.__name__] = kind
    return kind


def field_names(kind: type[Any]) -> tuple[str, ...]:
    """Names of a storable's fields."""
    return getattr(kind, "_fields", None) or tuple(f.name for f in fields(kind))


def compact(value: T) -> T:
    """The same state in tensors of its own: none is a view that keeps a larger one alive."""
    if isinstance(value, Tensor):
        return cast(T, value.detach().clone())
    if type(value).__name__ in STORABLE:
        kind = STORABLE[type(value).__name__]
        return cast(T, kind(**{name: compact(getattr(value, name)) for name in field_names(kind)}))
    if isinstance(value, tuple):
        return cast(T, tuple(compact(item) for item in value))
    return value


class LayerState(Protocol):
    """One layer's memory for a batch of sequences."""

    def repeat(self, n: int) -> Self:
        """Every row n times, copies of a row side by side."""

    def detach(self) -> Self:
        """The same values outside any graph."""

    @property
    def nbytes(self) -> int:
        """Bytes held, shared prefixes counted once."""


class Trace(Protocol):
    """What a layer's forward left behind: enough to know its state after any prefix."""

    def final(self) -> LayerState:
        """The state after the last token."""

    def at(self, positions: Tensor) -> LayerState:
        """The state before token positions[r, g] of row r, in the graph. [R, G] -> R G rows."""


def stack_traces(traces: Sequence[Trace]) -> Trace:
    """Traces of whole sequences side by side, padded at the end to the longest. No gradients.

    A padded row's states are those before its own end; ``final`` is not to be asked for.
    """
    if len(traces) == 1:
        return traces[0]
    kv = [trace for trace in traces if isinstance(trace, KVTrace)]
    if len(kv) < len(traces):
        raise TypeError(f"traces of {type(traces[0]).__name__} cannot be stacked")
    return KVTrace(
        cat_padded([t.k for t in kv], 2), cat_padded([t.v for t in kv], 2), None, kv[0].window
    )


def cat_padded(tensors: Sequence[Tensor], dim: int) -> Tensor:
    """Tensors of different size in ``dim`` side by side along dimension 0, filled up with zeros."""
    longest = max(t.shape[dim] for t in tensors)
    rows = []
    for t in tensors:
        missing = longest - t.shape[dim]
        rows.append(F.pad(t, (0, 0) * (t.ndim - 1 - dim) + (0, missing)) if missing else t)
    return torch.cat(rows)


@storable
@dataclass(frozen=True)
class State:
    """A model's memory: one state a layer, and how many tokens each row has read ([B])."""

    layers: tuple[LayerState, ...]
    position: Tensor

    def repeat(self, n: int) -> "State":
        """Every row n times, copies of a row side by side."""
        layers = tuple(layer.repeat(n) for layer in self.layers)
        return State(layers, self.position.repeat_interleave(n))

    def detach(self) -> "State":
        """The same values outside any graph."""
        return State(tuple(layer.detach() for layer in self.layers), self.position)

    def without_last(self, n: int) -> "State":
        """As it was n tokens ago, where the model ``cuts_states`` and has read on from a state."""
        if n == 0:
            return self
        kv = [layer for layer in self.layers if isinstance(layer, KVState)]
        if len(kv) < len(self.layers):
            raise TypeError("only keys and values can be taken back")
        return State(tuple(layer.without_last(n) for layer in kv), self.position - n)

    @staticmethod
    def stack(states: Sequence["State"]) -> "State":
        """States of one row each as one of many rows; ``split`` takes it apart again."""
        if len(states) == 1:
            return states[0]
        layers = zip(*(state.layers for state in states), strict=True)
        position = torch.cat([state.position for state in states])
        return State(tuple(_stack_layer(layer) for layer in layers), position)

    def split(self) -> list["State"]:
        """Its rows, as states of one row each."""
        rows = self.position.shape[0]
        if rows == 1:
            return [self]
        layers = zip(*(_split_layer(layer, rows) for layer in self.layers), strict=True)
        return [State(*row) for row in zip(layers, self.position.split(1), strict=True)]

    @property
    def nbytes(self) -> int:
        """Bytes held, shared prefixes counted once."""
        return sum(layer.nbytes for layer in self.layers)


@storable
@dataclass(frozen=True)
class DeltaState:
    """A delta-rule layer: the associative memory and the convolution's last inputs.

    memory: [B, H, K, V], at least fp32. conv: [B, W - 1, C], or None without convolution.
    """

    memory: Tensor
    conv: Tensor | None

    def repeat(self, n: int) -> "DeltaState":
        conv = None if self.conv is None else self.conv.repeat_interleave(n, 0)
        return DeltaState(self.memory.repeat_interleave(n, 0), conv)

    def detach(self) -> "DeltaState":
        return DeltaState(self.memory.detach(), None if self.conv is None else self.conv.detach())

    @property
    def nbytes(self) -> int:
        return self.memory.nbytes + (0 if self.conv is None else self.conv.nbytes)


@dataclass(frozen=True)
class DeltaTrace:
    """Keys, values and write strengths of a delta-rule layer, and its memory at chunk boundaries.

    k: [B, H, T, K]; v: [B, H, T, V]; beta: [B, H, T]; memory: [B, H, N + 1, K, V] as the op returns
    it; conv_inputs: [B, W - 1 + T, C], what came before the first token included; g: [B, H, T, 1|K]
    log of the decay, None if nothing decays.
    """

    k: Tensor
    v: Tensor
    beta: Tensor
    memory: Tensor
    conv_inputs: Tensor | None
    g: Tensor | None = None

    def final(self) -> DeltaState:
        T = self.k.shape[2]
        conv = None if self.conv_inputs is None else self.conv_inputs[:, T:].clone()
        return DeltaState(self.memory[:, :, -1].clone(), conv)

    def at(self, positions: Tensor) -> DeltaState:
        """From the chunk boundary before each position, write the few tokens up to it.

        Tokens from the position on get beta = 0 and g = 0, so they change nothing. Only the memory
        is replayed: keys and values are already there, so no projection is computed again.
        """
        R, G = positions.shape
        row = torch.arange(R, device=positions.device)[:, None].expand(R, G)
        boundary = positions // CHUNK  # [R, G]
        memory = self.memory[row, :, boundary].flatten(0, 1)  # [RG, H, K, V]
        offset = torch.arange(CHUNK, device=positions.device)
        tokens = boundary[..., None] * CHUNK + offset  # [R, G, CHUNK]
        unread = tokens >= positions[..., None]
        tokens = tokens.clamp_max(self.k.shape[2] - 1)

        def gather(x: Tensor) -> Tensor:  # [R, H, T, ...] -> [RG, H, CHUNK, ...]
            return x.transpose(1, 2)[row[..., None], tokens].flatten(0, 1).transpose(1, 2)

        k, v = gather(self.k), gather(self.v)
        unread = unread.flatten(0, 1)[:, None]  # [RG, 1, CHUNK]
        beta = gather(self.beta).masked_fill(unread, 0.0)
        if self.g is None:
            states = dispatch.delta_states(k, v, beta, memory)
        else:
            g = gather(self.g).masked_fill(unread[..., None], 0.0)
            _, states = dispatch.gated_delta_rule(k, k, v, g, beta, memory)
        return DeltaState(states[:, :, -1], self._conv_at(row, positions))

    def _conv_at(self, row: Tensor, positions: Tensor) -> Tensor | None:
        if self.conv_inputs is None:
            return None
        width = self.conv_inputs.shape[1] - self.k.shape[2]  # W - 1
        last = positions[..., None] + torch.arange(width, device=positions.device)
        return self.conv_inputs[row[..., None], last].flatten(0, 1)  # [RG, W - 1, C]


@storable
@dataclass(frozen=True)
class KVState:
    """Keys and values of an attention layer: a prefix that rows may share, and each row's own tail.

    prefix_k, prefix_v: [R, H, P, D], B a multiple of R; prefix_length: [B], how much of it a row
    sees; k, v: [B, H, S, D]. Forking a document's state into rollouts or queries copies no prefix.
    """

    prefix_k: Tensor
    prefix_v: Tensor
    prefix_length: Tensor
    k: Tensor
    v: Tensor

    def repeat(self, n: int) -> "KVState":
        return replace(
            self,
            prefix_length=self.prefix_length.repeat_interleave(n),
            k=self.k.repeat_interleave(n, 0),
            v=self.v.repeat_interleave(n, 0),
        )

    def detach(self) -> "KVState":
        return KVState(
            self.prefix_k.detach(),
            self.prefix_v.detach(),
            self.prefix_length,
            self.k.detach(),
            self.v.detach(),
        )

    def without_last(self, n: int) -> "KVState":
        """As it was n tokens of the tail ago."""
        S = self.k.shape[2] - n
        if S < 0:
            raise ValueError(f"the tail holds fewer than {n} tokens")
        return replace(self, k=self.k[:, :, :S], v=self.v[:, :, :S])

    @property
    def nbytes(self) -> int:
        return sum(x.nbytes for x in (self.prefix_k, self.prefix_v, self.k, self.v))


@dataclass(frozen=True)
class KVTrace:
    """Keys and values that an attention layer computed, after ``before`` (None: from the start).

    k, v: [B, H, S, D]: the whole tail, the new tokens last. window: as the attention's; a state
    keeps no token that none of the next ones will see.
    """

    k: Tensor
    v: Tensor
    before: KVState | None
    window: int | None = None

    def final(self) -> KVState:
        k, v = self._last(self.k), self._last(self.v)
        if self.before is None:
            length = torch.full(k.shape[:1], k.shape[2], device=k.device)
            return _shared(k, v, length)
        if self.window is not None and k.shape[2] >= self.window - 1:
            rows = self.before.prefix_k.shape[0]
            no_k, no_v = (x.new_empty(rows, x.shape[1], 0, x.shape[3]) for x in (k, v))
            return KVState(no_k, no_v, torch.zeros_like(self.before.prefix_length), k, v)
        return replace(self.before, k=k, v=v)

    def at(self, positions: Tensor) -> KVState:
        if self.before is not None:
            raise ValueError("branches start from a forward over the whole sequence")
        return _shared(self.k, self.v, positions.flatten())

    def _last(self, x: Tensor) -> Tensor:
        S = x.shape[2]
        if self.window is None or self.window > S:
            return x
        return x[:, :, S - self.window + 1 :].clone()  # a view would keep all of x alive


@dataclass(frozen=True)
class KVRows:
    """Keys and values of rows that share nothing, each as it was: to stack them copies none."""

    rows: tuple[KVState, ...]

    def repeat(self, n: int) -> "KVRows":
        return KVRows(tuple(row for row in self.rows for _ in range(n)))

    def detach(self) -> "KVRows":
        return KVRows(tuple(row.detach() for row in self.rows))

    @property
    def nbytes(self) -> int:
        return sum(row.nbytes for row in self.rows)


@dataclass(frozen=True)
class KVRowsTrace:
    """What attention over ``KVRows`` leaves behind."""

    rows: tuple[KVTrace, ...]

    def final(self) -> KVRows:
        return KVRows(tuple(row.final() for row in self.rows))

    def at(self, positions: Tensor) -> KVState:
        raise ValueError("branches start from a forward over the whole sequence")


def _stack_layer(rows: Sequence[LayerState]) -> LayerState:
    if isinstance(rows[0], KVState):
        return KVRows(tuple(row for row in rows if isinstance(row, KVState)))
    states = [row for row in rows if isinstance(row, DeltaState)]
    if len(states) < len(rows):
        raise TypeError(f"states of {type(rows[0]).__name__} cannot be stacked")
    convs = [row.conv for row in states if row.conv is not None]
    return DeltaState(
        torch.cat([row.memory for row in states]), torch.cat(convs) if convs else None
    )


def _split_layer(layer: LayerState, rows: int) -> Sequence[LayerState]:
    if isinstance(layer, KVRows):
        return layer.rows
    if isinstance(layer, KVState):
        parts = (layer.prefix_k, layer.prefix_v, layer.prefix_length, layer.k, layer.v)
        return [KVState(*row) for row in zip(*(x.split(1) for x in parts), strict=True)]
    if not isinstance(layer, DeltaState):
        raise TypeError(f"states of {type(layer).__name__} cannot be split")
    convs = [None] * rows if layer.conv is None else layer.conv.split(1)
    return [DeltaState(*row) for row in zip(layer.memory.split(1), convs, strict=True)]


def _shared(k: Tensor, v: Tensor, length: Tensor) -> KVState:
    empty_k, empty_v = (x.new_empty(length.shape[0], x.shape[1], 0, x.shape[3]) for x in (k, v))
    return KVState(k, v, length, empty_k, empty_v)


def pad_conv(past: Tensor | None, x: Tensor, width: int) -> Tensor:
    """The convolution's inputs with what came before them: [B, W - 1 + T, C]."""
    if past is None:
        return F.pad(x, (0, 0, width - 1, 0))
    return torch.cat([past, x], dim=1)
