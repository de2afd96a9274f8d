"""A document as the loop sees it, and the sequences that its steps read."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from refine_server.ttt.config import AdaptConfig
from refine_server.ttt.fast_weights import BASE, FastWeights
from refine_server.ttt.models.base import CausalLM, Frozen, Trunk
from refine_server.ttt.selection import select_spans

MIN_PREFIX = 20
"""Tokens that stand before a rollout at least, as in the paper's code."""


@dataclass(frozen=True)
class TokenStats:
    """What the model says of a reading's tokens, from position ``first`` on.

    log_prob: [R, T - first] of the tokens themselves, in the graph. entropy: the same shape, of the
    distribution that each of them was predicted from.
    """

    log_prob: Tensor
    entropy: Tensor

    @property
    def loss(self) -> Tensor:
        """Mean next-token cross-entropy in nats."""
        return -self.log_prob.mean()


class Reading:
    """Rows of tokens that steps read again and again, with what never changes computed once.

    input_ids: [R, T]. Tokens before ``first`` (a prompt's header; at least one token, which nothing
    predicts) are context: they are neither learned nor rolled out from. ``min_prefix`` tokens stand
    before every rollout, ``positions`` of them start in every row.
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
        self.frozen: Frozen = model.freeze(input_ids, fast)

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
        before = hidden[:, self.first - 1 : -1]
        return TokenStats(*self.model.token_stats(before, self.input_ids[:, self.first :], fast))

    @property
    def tokens_learned(self) -> int:
        """Tokens of a row that the loss reads."""
        return self.input_ids.shape[1] - self.first

    def starts(self, index: Tensor, rollout_tokens: int) -> Tensor:
        """Rollout starts from indices into ``stats``, with room before and after. [R, G]."""
        last = self.input_ids.shape[1] - rollout_tokens
        lowest = min(max(self.first, self.min_prefix), last)
        return (self.first + index).clamp(lowest, last)


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
            stats.append(TokenStats(*(x[self.rows_of(r), tokens] for x in (log_prob, entropy))))
        return stats

    def rows_of(self, r: int) -> slice:
        """Request r's rows."""
        return slice(r * self.rows, (r + 1) * self.rows)


def too_short(document: Reading, config: AdaptConfig) -> bool:
    """Whether no rollout with its own prefix fits into the document."""
    return document.tokens_learned < 2 * config.rollout_tokens


def span_reading(
    document: Reading, fast: FastWeights, config: AdaptConfig, generator: torch.Generator
) -> Reading:
    """The most informative spans of a document, as short rows of their own (``prefix = local``)."""
    with torch.no_grad():
        stats = document.stats(document.base.hidden, BASE)
    length = min(config.span_tokens, document.tokens_learned)
    starts = select_spans(
        stats.entropy[0],
        -stats.log_prob[0],
        config.selection,
        count=min(config.chunks, document.tokens_learned // length),
        length=length,
        generator=generator,
    )
    ids = document.input_ids[0, document.first :]
    rows = torch.stack([ids[start : start + length] for start in starts])
    return Reading(document.model, rows, fast, min_prefix=length // 4)
