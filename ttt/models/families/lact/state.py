"""The state of a LaCT layer: window, memory, and the chunk that has been read but not yet written.

Chunks are counted from the first token of a sequence. A chunk is written when the first token
after it arrives, never earlier: the authors' code does not let the last chunk of a sequence write,
not even a full one, and a state must not depend on how a sequence was cut into pieces.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from typing_extensions import override

from refine_server.ttt.models.families.lact.swiglu_memory import Memory, Rule, Writes
from refine_server.ttt.models.state import (
    KVState,
    KVTrace,
    LayerState,
    Trace,
    cat_padded,
    storable,
)


@storable
@dataclass(frozen=True, slots=True)
class Pending:
    """Tokens that are not yet written: a prefix that rows may share, and each row's own tail."""

    prefix: Writes
    """Of R rows, B a multiple of R."""
    tail: Writes
    """Of B rows."""
    seen: tuple[int, ...]
    """How many tokens of the prefix each row has read."""
    start: tuple[int, ...]
    """Each row's first token that is not yet written, counted over its prefix and its tail."""

    @classmethod
    def first(cls, tail: Writes) -> "Pending":
        """Make the pending tokens of rows that have read nothing but ``tail``."""
        rows = tail.k.shape[0]
        return cls(tail.tokens(0, 0), tail, (0,) * rows, (0,) * rows)

    @property
    def lengths(self) -> list[int]:
        """How many tokens are not yet written, row by row: 0 … chunk."""
        own = self.tail.k.shape[2]
        return [seen + own - start for seen, start in zip(self.seen, self.start, strict=True)]

    def extend(self, new: Writes) -> "Pending":
        """Append new tokens to every row's tail."""
        return replace(self, tail=Writes.cat((self.tail, new), dim=2))

    def chunk(self, rows: Sequence[int], number: int, size: int) -> Writes:
        """Return the number-th chunk from ``start`` on of these rows, which must be complete."""
        shared = len(self.seen) // self.prefix.k.shape[0]
        parts = []
        for b in rows:
            first, seen = self.start[b] + number * size, self.seen[b]
            row, tail = b // shared, max(first - seen, 0)
            before = self.prefix.map(lambda x, r=row: x[r : r + 1])  # type: ignore[misc]
            after = self.tail.map(lambda x, b=b: x[b : b + 1])  # type: ignore[misc]
            after = after.tokens(tail, max(first + size - seen, 0))
            if first >= seen:
                parts.append(after)
            else:
                before = before.tokens(first, min(first + size, seen))
                parts.append(Writes.cat((before, after), dim=2))
        return Writes.cat(parts, dim=0)

    def written(self, starts: Sequence[int]) -> "Pending":
        """Mark the tokens before ``starts`` as written, and drop those that no row needs."""
        if any(start < seen for start, seen in zip(starts, self.seen, strict=True)):
            return replace(self, start=tuple(starts))
        own = [start - seen for start, seen in zip(starts, self.seen, strict=True)]
        cut = min(own)
        tail = self.tail.tokens(cut, self.tail.k.shape[2])
        tail = tail.map(torch.clone) if cut else tail  # a view would keep all the tokens alive
        nothing = self.prefix.tokens(0, 0).map(torch.clone)
        return Pending(nothing, tail, (0,) * len(own), tuple(start - cut for start in own))

    @classmethod
    def stack(cls, rows: Sequence["Pending"]) -> "Pending":
        """Put the pending tokens of single rows into one batch, each as a prefix of its own."""
        own = [Writes.cat((row.prefix, row.tail), dim=2) for row in rows]
        prefix = Writes(*(cat_padded(parts, 2) for parts in zip(*own, strict=True)))
        seen = tuple(writes.k.shape[2] for writes in own)
        nothing = prefix.tokens(0, 0).map(torch.clone)
        return cls(prefix, nothing, seen, tuple(row.start[0] for row in rows))

    def repeat(self, n: int) -> "Pending":
        """Repeat every row n times; the prefix stays shared."""
        return Pending(
            self.prefix,
            self.tail.map(lambda x: x.repeat_interleave(n, 0)),
            tuple(s for s in self.seen for _ in range(n)),
            tuple(s for s in self.start for _ in range(n)),
        )

    def detach(self) -> "Pending":
        """Return the same values outside any graph."""
        return replace(
            self, prefix=self.prefix.map(Tensor.detach), tail=self.tail.map(Tensor.detach)
        )

    @property
    def nbytes(self) -> int:
        """Bytes held, the shared prefix counted once."""
        return self.prefix.nbytes + self.tail.nbytes


@storable
@dataclass(frozen=True, slots=True)
class LaCTState(LayerState):
    """A LaCT layer's memory of what it has read.

    It cannot be truncated. Stacked rows stand in different places of their chunks, so that a batch
    of them cannot be split again.
    """

    window: KVState
    """Keys and values of the sliding window."""
    memory: Memory
    """Of M rows, B a multiple of M, before the oldest pending token's chunk."""
    pending: Pending
    """The tokens that are not yet written."""

    @classmethod
    @override
    def stack(cls, rows: Sequence["LaCTState"]) -> "LaCTState":
        windows = [row.window.joined() for row in rows]
        k, v = (
            cat_padded(x, 2) for x in ([w.prefix_k for w in windows], [w.prefix_v for w in windows])
        )
        length = torch.cat([window.prefix_length for window in windows])
        window = type(windows[0]).of_prefix(k, v, length)
        return cls(
            window,
            Memory.cat([row.memory for row in rows]),
            Pending.stack([row.pending for row in rows]),
        )

    @override
    def repeat(self, n: int) -> "LaCTState":
        return LaCTState(self.window.repeat(n), self.memory, self.pending.repeat(n))

    @override
    def detach(self) -> "LaCTState":
        return LaCTState(
            self.window.detach(), self.memory.map(Tensor.detach), self.pending.detach()
        )

    @property
    @override
    def nbytes(self) -> int:
        return self.window.nbytes + self.memory.nbytes + self.pending.nbytes


@dataclass(frozen=True, kw_only=True, slots=True)
class LaCTTrace(Trace):
    """What a LaCT layer's forward leaves behind."""

    window: KVTrace
    memories: tuple[Memory, ...]
    """The memory that was read, before every chunk."""
    pending: Pending
    """All tokens of the forward, and those that were pending before."""
    starts: tuple[int, ...]
    """Row by row, the first token that the last memory has not written."""
    rule: Rule
    from_start: bool
    """Whether no state came before."""

    @override
    def final(self) -> LaCTState:
        pending = self.pending.written(self.starts)
        if self.from_start:  # the pending tokens are shared by all rows that continue from here
            seen = pending.lengths
            nothing = pending.tail.tokens(0, 0).map(torch.clone)
            pending = Pending(pending.tail, nothing, tuple(seen), (0,) * len(seen))
        return LaCTState(self.window.final(), self.memories[-1], pending)

    @override
    def at(self, positions: Tensor) -> LaCTState:
        if not self.from_start:
            raise ValueError("branches start from a forward over the whole sequence")
        window, tokens = self.window.at(positions), self.pending.tail
        memories, seen, start = [], [], []
        for row, own in enumerate(positions.tolist()):
            for position in own:
                number = min(position // self.rule.chunk, len(self.memories) - 1)
                memory = self.memories[number]
                memories.append(memory.select([row * memory.rows // positions.shape[0]]))
                seen.append(position)
                start.append(number * self.rule.chunk)
        nothing = tokens.tokens(0, 0).map(lambda x: x[:1].expand(len(seen), -1, -1, -1))
        pending = Pending(tokens, nothing, tuple(seen), tuple(start))
        return LaCTState(window, Memory.cat(memories), pending)


def read_and_write(
    q: Tensor, memory: Memory, pending: Pending, rule: Rule
) -> tuple[Tensor, tuple[Memory, ...], tuple[int, ...]]:
    """Read the memory at the last T of the pending tokens, and write every chunk they complete.

    Args:
        q: [B, H, T, D], queries of the last T tokens of ``pending``.
        memory: of M rows, B a multiple of M, before the oldest pending token's chunk.
        pending: all tokens since then, the T new ones included.
        rule: when and how to write.

    Returns:
        o [B, H, T, D]; the memories that were read from, oldest first; and, row by row, the first
        token that the last of them has not written.
    """
    B, _, T, _ = q.shape
    before = [length - T for length in pending.lengths]
    last = [max(p + T - 1, 0) // rule.chunk for p in before]  # chunk of each row's last token
    memories, pieces, done = [memory], [q[:, :, :0]], 0
    for number in range(max(last) + 1):
        lows = [min(max(number * rule.chunk - p, 0), T) for p in before]
        high = min(max((number + 1) * rule.chunk - min(before), 0), T)
        low = min(lows)
        if low < high:
            o = memories[-1].read(q[:, :, low:high])
            if low < done:  # rows cross the edge of a chunk at different tokens
                so_far = torch.cat(pieces, dim=2)
                t = torch.arange(low, done, device=q.device)
                crossed = t >= torch.tensor(lows, device=q.device)[:, None]  # [B, done - low]
                own = torch.where(
                    crossed[:, None, :, None], o[:, :, : done - low], so_far[:, :, low:]
                )
                pieces, o = [so_far[:, :, :low], own], o[:, :, done - low :]
            pieces.append(o)
            done = high
        crossing = [b for b in range(B) if last[b] > number]
        if crossing:
            memories.append(_write(memories[-1], pending, crossing, number, rule, B))
    starts = tuple(s + n * rule.chunk for s, n in zip(pending.start, last, strict=True))
    return torch.cat(pieces, dim=2), tuple(memories), starts


def _write(
    memory: Memory, pending: Pending, rows: Sequence[int], number: int, rule: Rule, B: int
) -> Memory:
    chunk = pending.chunk(rows, number, rule.chunk)
    memory = memory.spread(B)
    if len(rows) == B:
        return memory.write(chunk, rule)
    return memory.replace_rows(rows, memory.select(rows).write(chunk, rule))
