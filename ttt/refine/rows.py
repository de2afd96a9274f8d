"""A document as the loop sees it, and the sequences that its steps read."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from refine_server.ttt.fast_weights import BASE, FastWeights
from refine_server.ttt.interface.config import AdaptConfig
from refine_server.ttt.models.base import CausalLM
from refine_server.ttt.models.state import State
from refine_server.ttt.models.trunk import Frozen, Trunk
from refine_server.ttt.refine import held_out
from refine_server.ttt.refine.positions import select_spans
from refine_server.ttt.refine.spans import similar_spans, whole_sentences

MIN_PREFIX = 20
"""Tokens that stand before a rollout at least, as in the paper's code."""


@dataclass(frozen=True)
class TokenStats:
    """What the model says of a reading's tokens, from position ``first`` on.

    log_prob: [R, T - first] of the tokens themselves, in the graph. entropy: the same shape, of the
    distribution that each of them was predicted from. learned: [T - first], False for what is held
    out; None when nothing is.
    """

    log_prob: Tensor
    entropy: Tensor
    learned: Tensor | None = None

    @property
    def loss(self) -> Tensor:
        """Mean next-token cross-entropy, in nats, of the tokens that are learned."""
        log_prob = self.log_prob if self.learned is None else self.log_prob[:, self.learned]
        return -log_prob.mean()


class Reading:
    """Rows of tokens that steps read again and again, with what never changes computed once.

    input_ids: [R, T]. Tokens before ``first`` (a prompt's header; at least one token, which nothing
    predicts) are context: they are neither learned nor rolled out from. ``min_prefix`` tokens stand
    before every rollout, ``positions`` of them start in every row. Spans that are ``held_out`` are
    read like the rest, but neither learned nor rolled out.
    """

    def __init__(
        self,
        model: CausalLM,
        input_ids: Tensor,
        fast: FastWeights,
        *,
        first: int = 1,
        positions: int = 1,
        min_prefix: int = MIN_PREFIX,
    ) -> None:
        self.model = model
        self.input_ids = input_ids
        self.first = max(first, 1)
        self.positions = positions
        self.min_prefix = min_prefix
        self.held_out: Sequence[held_out.Span] = ()
        self.fast = fast
        if model.prefill_chunk is None:
            _ = self.frozen  # part of reading the document, not of the first step

    @cached_property
    def frozen(self) -> Frozen:
        """The reading below all fast weights."""
        return self.model.freeze(self.input_ids, self.fast)

    def end(self, fast: FastWeights) -> tuple[Tensor, State]:
        """Hidden state of the last token [R, D] and the state after it, under ``fast``."""
        return self._end(fast) if fast else self.base_end

    @cached_property
    def base_end(self) -> tuple[Tensor, State]:
        """``end`` under the base weights."""
        return self._end(BASE)

    @torch.no_grad()
    def _end(self, fast: FastWeights) -> tuple[Tensor, State]:
        if self.model.prefill_chunk is not None:
            return self.model.read(self.input_ids, fast)
        trunk = self.trunk(fast) if fast else self.base
        return trunk.hidden[:, -1], trunk.state

    def trunk(self, fast: FastWeights) -> Trunk:
        """Read the rows under ``fast``, differentiably."""
        return self.model.trunk(self.frozen, fast)

    @cached_property
    def base(self) -> Trunk:
        """The rows read by the unadapted model."""
        with torch.no_grad():
            return self.trunk(BASE)

    def stats(self, hidden: Tensor, fast: FastWeights) -> TokenStats:
        """What hidden states [R, T, D] say of every token from ``first`` on."""
        before, targets = hidden[:, self.first - 1 : -1], self.input_ids[:, self.first :]
        return TokenStats(*self.model.token_stats(before, targets, fast), self.learned)

    @property
    def learned(self) -> Tensor | None:
        """[T - first], False for what is held out; None when nothing is."""
        if not self.held_out:
            return None
        learned = torch.ones(self.tokens_learned, dtype=torch.bool, device=self.input_ids.device)
        for start, end in self.held_out:
            learned[start - self.first : end - self.first] = False
        return learned

    @property
    def tokens_learned(self) -> int:
        """Tokens of a row that the loss may read, those that are held out included."""
        return self.input_ids.shape[1] - self.first

    def starts(self, index: Tensor, rollout_tokens: int) -> Tensor:
        """Rollout starts from indices into ``stats``, with room before and after. [R, G].

        A start whose rollout would meet a held-out span is moved behind it, or before it if there
        is no room.
        """
        last = self.input_ids.shape[1] - rollout_tokens
        lowest = min(max(self.first, self.min_prefix), last)
        starts = (self.first + index).clamp(lowest, last)
        for start, end in self.held_out:
            meets = (starts < end) & (starts + rollout_tokens > start)
            starts = starts.where(~meets, end if end <= last else start - rollout_tokens)
        return starts

    def continuations(self, starts: Tensor, tokens: int) -> Tensor:
        """What the rows themselves have from starts [R, G] on: [R G, tokens]."""
        at = starts[..., None] + torch.arange(tokens, device=starts.device)  # [R, G, tokens]
        row = torch.arange(starts.shape[0], device=starts.device)[:, None, None]
        return self.input_ids[row, at].flatten(0, 1)

    def hold_out(self, taken: Sequence[held_out.Span], rollout_tokens: int, seed: int) -> None:
        """Choose spans that are held out from now on, none of them in what is ``taken``."""
        generator = torch.Generator().manual_seed(seed)
        first = max(self.first, self.min_prefix) + max(rollout_tokens, held_out.SPAN)
        last = self.input_ids.shape[1]
        self.held_out = held_out.hold_out(first, last, taken, rollout_tokens, generator)


@dataclass(frozen=True)
class Asked:
    """A query that is known when its document is adapted to.

    header, query: tokens of the prompt before the document and from its end on, up to where the
    answer begins.
    """

    text: str
    header: list[int]
    query: list[int]


class TrunkBatch:
    """A trunk over the rows of several requests, S of each, padded at the end to the longest.

    Args:
        trunk: over all rows.
        lengths: of each request's rows, in tokens.
        rows: S.
    """

    def __init__(self, trunk: Trunk, lengths: Sequence[int], rows: int) -> None:
        self.trunk, self.lengths, self.rows = trunk, lengths, rows

    @cached_property
    def ends(self) -> State:
        """After the last token of every row, R S of them, made when it is asked for.

        A batch has it only at the end of its longest row: others' is the state before the padding.
        """
        if len(self.lengths) == 1:
            return self.trunk.state
        device = self.trunk.hidden.device
        ends = torch.tensor(self.lengths, device=device).repeat_interleave(self.rows)
        with torch.no_grad():
            return self.trunk.state_at(ends[:, None])

    @cached_property
    def ends_of_rows(self) -> list[State]:
        """``ends``, every row's by itself."""
        return self.ends.split()


@dataclass(frozen=True)
class TrunkPart:
    """One request's part of a batch's trunk: its rows, and their length without padding."""

    batch: TrunkBatch
    rows: slice
    length: int

    @staticmethod
    def whole(trunk: Trunk) -> "TrunkPart":
        """A trunk that is all one request's."""
        R, T, _ = trunk.hidden.shape
        return TrunkPart(TrunkBatch(trunk, [T], R), slice(R), T)

    @property
    def hidden(self) -> Tensor:
        """[S, T, D], of its own tokens."""
        return self.batch.trunk.hidden[self.rows, : self.length]

    def end(self) -> State:
        """After its last tokens."""
        if len(self.batch.lengths) == 1:
            return self.batch.ends
        return State.stack(self.batch.ends_of_rows[self.rows])


class Readings:
    """Readings of several requests, read as one batch: rows padded at the end to the longest.

    A model is causal, so padding changes nothing of what stands before it. Request r has rows
    r S … (r + 1) S - 1, S as many as each of the readings has.
    """

    def __init__(self, readings: Sequence[Reading]) -> None:
        self.readings = readings
        self.model = readings[0].model
        self.frozen = Frozen.stack([reading.frozen for reading in readings])
        self.rows = readings[0].input_ids.shape[0]

    def trunk(self, fast: FastWeights) -> Trunk:
        """Read all rows under the requests' ``fast``, differentiably."""
        return self.model.trunk(self.frozen, fast)

    def stats(self, hidden: Tensor, fast: FastWeights) -> list[TokenStats]:
        """What hidden states [R S, T, D] say of every request's own tokens."""
        ids, first = self.frozen.input_ids, min(reading.first for reading in self.readings)
        log_prob, entropy = self.model.token_stats(hidden[:, first - 1 : -1], ids[:, first:], fast)
        stats = []
        for r, reading in enumerate(self.readings):
            tokens = slice(reading.first - first, reading.input_ids.shape[1] - first)
            own = self.rows_of(r), tokens
            stats.append(TokenStats(log_prob[own], entropy[own], reading.learned))
        return stats

    def parts(self, trunk: Trunk) -> list[TrunkPart]:
        """Every request's part of a trunk over all rows."""
        lengths = [own.input_ids.shape[1] for own in self.readings]
        batch = TrunkBatch(trunk, lengths, self.rows)
        return [TrunkPart(batch, self.rows_of(r), length) for r, length in enumerate(lengths)]

    def rows_of(self, r: int) -> slice:
        """Request r's rows."""
        return slice(r * self.rows, (r + 1) * self.rows)


def too_short(document: Reading, config: AdaptConfig) -> bool:
    """Whether no rollout with its own prefix fits into the document."""
    return document.tokens_learned < 2 * config.rollout_tokens


def informative_spans(
    document: Reading, config: AdaptConfig, generator: torch.Generator, asked: Asked | None
) -> list[held_out.Span]:
    """The most informative spans of a document: what ``prefix = local`` steps on.

    Those that a query asks about may be none. With a guard some of a short document is left for it.
    """
    tokens = document.tokens_learned
    room = tokens if config.guard == "none" else tokens * 3 // 4
    length = min(config.span_tokens, tokens)
    count = min(config.chunks, max(1, room // length))
    if config.selection == "query":
        if asked is None:
            raise ValueError("selection='query' needs a query")
        return _asked_spans(document, config, asked, count, length)
    with torch.no_grad():
        stats = document.stats(document.base.hidden, BASE)
    starts = select_spans(
        stats.entropy[0],
        -stats.log_prob[0],
        config.selection,
        count=count,
        length=length,
        generator=generator,
    )
    return [(document.first + start, document.first + start + length) for start in starts]


def _asked_spans(
    document: Reading, config: AdaptConfig, asked: Asked, count: int, length: int
) -> list[held_out.Span]:
    """The spans that a query asks about: best first; as an answer in the document's order, so that
    the document, where it is in context, says the same.
    """
    ids, tokenizer = document.input_ids[0, document.first :].tolist(), document.model.tokenizer
    starts = similar_spans(ids, asked.text, tokenizer, count=count, length=length)
    spans = [(start, start + length) for start in starts]
    if config.spans_as != "text":
        spans = sorted(whole_sentences(ids, *span, tokenizer) for span in spans)
    return [(document.first + start, document.first + end) for start, end in spans]


def span_reading(document: Reading, spans: Sequence[held_out.Span], fast: FastWeights) -> Reading:
    """Spans of a document, all of one length, as short rows of their own."""
    rows = torch.stack([document.input_ids[0, start:end] for start, end in spans])
    return Reading(document.model, rows, fast, min_prefix=rows.shape[1] // 4)


def answer_reading(
    document: Reading,
    spans: Sequence[held_out.Span],
    fast: FastWeights,
    asked: Asked,
    in_context: bool,
) -> Reading:
    """Spans of a document, one after the other, as the answer to a query: a single row.

    The query is asked without the document, or ``in_context`` after it.
    """
    ids = document.input_ids[0]
    header, query = (ids.new_tensor(part) for part in (asked.header, asked.query))
    row = [ids if in_context else header, query]
    first = sum(part.shape[0] for part in row)
    row += [ids[start:end] for start, end in spans]
    return Reading(
        document.model,
        torch.cat(row)[None],
        fast,
        first=first,
        positions=document.positions,
        min_prefix=first,
    )
