"""State and trace of softmax-attention layers: keys and values."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar, Self

import torch
from torch import Tensor
from typing_extensions import override

from refine_server.kernels.host_values import derive, host_values, remember
from refine_server.ttt.models.state.base import Cat, LayerState, Trace, cat_padded
from refine_server.ttt.models.state.storage import storable


@storable
@dataclass(frozen=True, kw_only=True, slots=True)
class KVState(LayerState):
    """Keys and values: a prefix that rows may share, and each row's own tail.

    Forking a document's state into rollouts or queries copies no prefix.
    """

    stacks: ClassVar[bool] = True
    truncates: ClassVar[bool] = True
    joins_segments: ClassVar[bool] = True
    views_prefixes: ClassVar[bool] = True

    prefix_k: Tensor
    """[R, H, P, D], B a multiple of R."""
    prefix_v: Tensor
    """[R, H, P, D]."""
    prefix_length: Tensor
    """[B], how many tokens of the prefix a row sees."""
    k: Tensor
    """[B, H, S, D]."""
    v: Tensor
    """[B, H, S, D]."""

    @classmethod
    def of_prefix(cls, k: Tensor, v: Tensor, length: Tensor) -> Self:
        """Make a state whose B = len(length) rows share k and v [R, H, P, D] and have no tail."""
        B = length.shape[0]
        no_k, no_v = (x.new_empty(B, x.shape[1], 0, x.shape[3]) for x in (k, v))
        return cls(prefix_k=k, prefix_v=v, prefix_length=length, k=no_k, v=no_v)

    @override
    def repeat(self, n: int) -> Self:
        lengths = self.prefix_length.repeat_interleave(n)
        return replace(
            self,
            prefix_length=derive(self.prefix_length, lengths, partial(_each_repeated, n)),
            k=self.k.repeat_interleave(n, 0),
            v=self.v.repeat_interleave(n, 0),
        )

    @override
    def detach(self) -> Self:
        return replace(
            self,
            prefix_k=self.prefix_k.detach(),
            prefix_v=self.prefix_v.detach(),
            k=self.k.detach(),
            v=self.v.detach(),
        )

    @property
    @override
    def nbytes(self) -> int:
        return sum(x.nbytes for x in (self.prefix_k, self.prefix_v, self.k, self.v))

    @classmethod
    @override
    def stack(cls, rows: Sequence[Self]) -> "KVRows":
        return KVRows(tuple(rows))

    @override
    def split(self) -> list[Self]:
        parts = (self.prefix_k, self.prefix_v, self.prefix_length, self.k, self.v)
        return [
            replace(self, prefix_k=prefix_k, prefix_v=prefix_v, prefix_length=length, k=k, v=v)
            for prefix_k, prefix_v, length, k, v in zip(*(x.split(1) for x in parts), strict=True)
        ]

    @override
    def truncate(self, n: int) -> Self:
        S = self.k.shape[2] - n
        if S < 0:
            raise ValueError(f"the tail holds fewer than {n} tokens")
        return replace(self, k=self.k[:, :, :S], v=self.v[:, :, :S])

    @override
    def prefixes(self, lengths: Tensor) -> Self:
        joined = self.joined()
        return self.of_prefix(joined.prefix_k, joined.prefix_v, lengths)

    @override
    def joined(self) -> Self:
        if not self.k.shape[2]:
            return self
        k, v = torch.cat([self.prefix_k, self.k], dim=2), torch.cat([self.prefix_v, self.v], dim=2)
        return self.of_prefix(k, v, self.prefix_length + self.k.shape[2])


@storable
@dataclass(frozen=True, kw_only=True, slots=True)
class WindowKVState(KVState):
    """Keys and values of the last tokens, those that a sliding window may still show.

    It cannot be truncated: what slid out of the window would be missing.
    """

    truncates: ClassVar[bool] = False
    views_prefixes: ClassVar[bool] = False

    @override
    def prefixes(self, lengths: Tensor) -> Self:
        raise TypeError("a state of a sliding window does not hold those of its prefixes")

    @override
    def truncate(self, n: int) -> Self:
        raise TypeError("a state of a sliding window cannot be truncated")


@dataclass(frozen=True, slots=True)
class KVRows(LayerState):
    """Keys and values of rows that share nothing, each as it was: stacking copies none of them."""

    rows: tuple[KVState, ...]

    @override
    def repeat(self, n: int) -> "KVRows":
        return KVRows(tuple(row for row in self.rows for _ in range(n)))

    @override
    def detach(self) -> "KVRows":
        return KVRows(tuple(row.detach() for row in self.rows))

    @property
    @override
    def nbytes(self) -> int:
        return sum(row.nbytes for row in self.rows)

    @override
    def split(self) -> Sequence[KVState]:
        return self.rows


@dataclass(frozen=True, kw_only=True, slots=True)
class KVTrace(Trace):
    """Keys and values that an attention layer computed."""

    k: Tensor
    """[B, H, S, D]: the whole tail, the new tokens last."""
    v: Tensor
    """[B, H, S, D]."""
    before: KVState | None
    """The state that the tokens continued from; None: the start of the sequence."""
    window: int | None = None
    """The attention's window; a state keeps no token that none of the next ones will see."""

    @property
    def _state_class(self) -> type[KVState]:
        return KVState if self.window is None else WindowKVState

    @override
    def final(self) -> KVState:
        k, v = self._last(self.k), self._last(self.v)
        if self.before is None:
            length = torch.full(k.shape[:1], k.shape[2], device=k.device)
            remember(length, [k.shape[2]] * k.shape[0])
            return self._state_class.of_prefix(k, v, length)
        if self.window is not None and k.shape[2] >= self.window - 1:
            R = self.before.prefix_k.shape[0]
            no_k, no_v = (x.new_empty(R, x.shape[1], 0, x.shape[3]) for x in (k, v))
            length = torch.zeros_like(self.before.prefix_length)
            return replace(
                self.before, prefix_k=no_k, prefix_v=no_v, prefix_length=length, k=k, v=v
            )
        return replace(self.before, k=k, v=v)

    @override
    def at(self, positions: Tensor) -> KVState:
        if self.before is not None:
            raise ValueError("branches start from a forward over the whole sequence")
        lengths = positions.flatten()
        remember(lengths, [p for row in host_values(positions) for p in row])
        return self._state_class.of_prefix(self.k, self.v, lengths)

    @classmethod
    @override
    def stack(cls, traces: Sequence[Self]) -> "KVTrace":
        k, v = cat_padded([t.k for t in traces], 2), cat_padded([t.v for t in traces], 2)
        return KVTrace(k=k, v=v, before=None, window=traces[0].window)

    @classmethod
    @override
    def join(cls, segments: Sequence[Self]) -> "KVTrace":
        return cls._joined(segments, torch.cat)

    @classmethod
    @override
    def in_graph(cls, segments: Sequence[Self], cat: Cat) -> "KVTrace":
        return cls._joined(segments, cat)

    @classmethod
    def _joined(cls, segments: Sequence[Self], cat: Cat) -> "KVTrace":
        k, v = cat([t.k for t in segments], 2), cat([t.v for t in segments], 2)
        return KVTrace(k=k, v=v, before=None, window=segments[0].window)

    @override
    def own(self) -> "KVTrace":
        return replace(self, before=None)

    def _last(self, x: Tensor) -> Tensor:
        """Cut x [B, H, S, D] to what the next tokens may see."""
        S = x.shape[2]
        if self.window is None or self.window > S:
            return x
        return x[:, :, S - self.window + 1 :].clone()  # a view would keep all of x alive


def _each_repeated(n: int, values: Sequence[int]) -> list[int]:
    return [value for value in values for _ in range(n)]


@dataclass(frozen=True, slots=True)
class KVRowsTrace(Trace):
    """What attention over ``KVRows`` leaves behind."""

    rows: tuple[KVTrace, ...]

    @override
    def final(self) -> KVRows:
        return KVRows(tuple(row.final() for row in self.rows))

    @override
    def at(self, positions: Tensor) -> LayerState:
        raise ValueError("branches start from a forward over the whole sequence")
