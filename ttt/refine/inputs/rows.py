"""The token rows of one request: its whole document, spans of it, or an answer made of spans."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from refine_server.ttt.fast_weights import BASE, FastWeights
from refine_server.ttt.models.base import CausalLM
from refine_server.ttt.models.segments import OnRead, freeze_in_pieces, trunk_in_pieces
from refine_server.ttt.models.state import State
from refine_server.ttt.models.tape import Graph
from refine_server.ttt.models.trunk import Frozen, Trunk
from refine_server.ttt.pieces import Pieces, run_pieces

MIN_PREFIX = 20
"""The fewest tokens that stand before a rollout, as in the paper's code."""


class Span(NamedTuple):
    """A range of a document's tokens, counted in its ``input_ids``; ``end`` is not part of it."""

    start: int
    end: int


class Prefix(NamedTuple):
    """P prefixes as a model continues them.

    hidden: [P, D], the final hidden state of each prefix's last token. state: P rows, after it.
    """

    hidden: Tensor
    state: State

    def repeat(self, n: int) -> "Prefix":
        """Every prefix n times, the copies of one side by side: [P n, D]."""
        return Prefix(self.hidden.repeat_interleave(n, 0), self.state.repeat(n))

    def detach(self) -> "Prefix":
        """The same values outside any graph."""
        return Prefix(self.hidden.detach(), self.state.detach())


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenStats:
    """The statistics of the T - first tokens of every row that the model predicts."""

    log_prob: Tensor
    """[S, T - first], log-probabilities of the rows' own tokens in nats, in the graph."""
    entropy: Tensor
    """[S, T - first], entropies of the distributions that predicted them, without graph."""
    loss_mask: Tensor | None
    """[T - first], False for tokens that are held out; None when no token is."""

    @property
    def ntp_loss(self) -> Tensor:
        """The next-token cross-entropy, a mean over the tokens of the mask in nats: []."""
        if self.loss_mask is None:
            return -self.log_prob.mean()
        # Masked, not indexed: the host would wait for a GPU to know how many tokens are left.
        read = self.log_prob.masked_fill(~self.loss_mask, 0.0)
        return -read.sum() / (self.log_prob.shape[0] * self.loss_mask.sum())


class Rows:
    """S rows of T tokens that every step reads; what no step changes is computed once.

    Args:
        model: reads the rows; its base weights stay as they are.
        input_ids: [S, T].
        fast: fast weights of the layers that steps will change; the layers below are ``frozen``.
        context_tokens: how many tokens at the beginning of each row are context, such as the
            header of a prompt: the loss does not read them and no rollout starts among them. A
            row's first token is context in any case, because nothing predicts it.
        positions: how many rollout positions each row has.
        min_prefix: the fewest tokens before a rollout.
    """

    state: State | None = None
    """The state that the rows continue from, of S rows; None: they begin with their first token."""
    places: Tensor | None = None
    """[S, T], where in the document's ``input_ids`` each token stands, -1 for what is not of the
    document; None: the rows are the document."""

    def __init__(
        self,
        model: CausalLM,
        input_ids: Tensor,
        fast: FastWeights,
        *,
        context_tokens: int = 0,
        positions: int = 1,
        min_prefix: int = MIN_PREFIX,
    ) -> None:
        self.model = model
        self.input_ids = input_ids
        self.fast = fast
        self.context_tokens = context_tokens
        self.first = max(context_tokens, 1)
        """The first token of a row that the loss reads."""
        self.min_prefix = min_prefix
        self._held_out: Sequence[Span] = ()
        self.positions = min(positions, self.num_targets)
        self.on_read: OnRead | None = None
        """Told of each piece that is read without a graph."""
        self._frozen: Frozen | None = None
        self._base_trunk: Trunk | None = None
        self._base_end: Prefix | None = None

    @property
    def held_out(self) -> Sequence[Span]:
        """Spans that are read like all others, but are in no loss and in no rollout."""
        return self._held_out

    @held_out.setter
    def held_out(self, spans: Sequence[Span]) -> None:
        self._held_out = spans
        for name in ("loss_mask", "_moved_starts"):
            self.__dict__.pop(name, None)

    @property
    def num_targets(self) -> int:
        """T - first: how many tokens of a row the model predicts, held-out ones included."""
        return self.input_ids.shape[1] - self.first

    @property
    def places_in_document(self) -> Tensor:
        """Where in the document's ``input_ids`` each token stands; -1 elsewhere: [S, T]."""
        if self.places is not None:
            return self.places
        S, T = self.input_ids.shape
        return torch.arange(T, device=self.input_ids.device).expand(S, T)

    # -- forward --------------------------------------------------------------------------------

    @property
    def frozen(self) -> Frozen:
        """The forward over the rows below all fast weights."""
        return run_pieces(self.read_frozen())

    def read_frozen(self) -> Pieces[Frozen]:
        """Compute ``frozen`` in pieces, unless that was done."""
        if self._frozen is None:
            self._frozen = yield from freeze_in_pieces(
                self.model, self.input_ids, self.fast, self.state, self.on_read
            )
        return self._frozen

    def trunk(self, fast: FastWeights) -> Trunk:
        """Compute the forward over the rows under ``fast``, in the graph: hidden [S, T, D]."""
        return self.model.trunk(self.frozen, fast, self.state)

    def prefixes(self, trunk: Trunk, starts: Tensor, fast: FastWeights) -> Prefix:
        """Take the prefixes that end before tokens of the rows out of their forward, in its graph.

        Args:
            trunk: the forward over these rows, and maybe over those of other requests.
            starts: [R S, G], counted in the rows' ``input_ids``.
            fast: the fast weights that it was computed under.

        Returns:
            R S G prefixes.
        """
        row = torch.arange(starts.shape[0], device=starts.device)[:, None]
        return Prefix(trunk.hidden[row, starts - 1].flatten(0, 1), trunk.state_at(starts))

    @property
    def base_trunk(self) -> Trunk:
        """The forward over the rows under the base weights, without graph."""
        return run_pieces(self.read_base())

    @torch.no_grad()
    def read_base(self) -> Pieces[Trunk]:
        """Compute ``base_trunk`` in pieces, unless that was done."""
        if self._base_trunk is None:
            self._base_trunk = yield from self._read(BASE)
        return self._base_trunk

    def end(self, fast: FastWeights) -> Pieces[Prefix]:
        """Read the whole rows under ``fast``, without graph, as S prefixes of what follows."""
        if not fast.is_base:
            return (yield from self._read_end(fast))
        if self._base_end is None:
            self._base_end = yield from self._read_end(BASE)
        return self._base_end

    @torch.no_grad()
    def _read_end(self, fast: FastWeights) -> Pieces[Prefix]:
        if self.model.prefill_chunk is not None:
            return Prefix(*self.model.read(self.input_ids, fast))
        trunk = yield from (self.read_base() if fast.is_base else self._read(fast))
        return Prefix(trunk.hidden[:, -1], trunk.state)

    def _read(self, fast: FastWeights) -> Pieces[Trunk]:
        if self.state is not None:
            return self.trunk(fast)  # few tokens, of which all traces are kept
        frozen = yield from self.read_frozen()
        return (yield from trunk_in_pieces(self.model, frozen, fast, None, Graph(), self.on_read))

    def token_stats(self, hidden: Tensor, fast: FastWeights) -> TokenStats:
        """Compute the statistics of all tokens from ``first`` on out of hidden [S, T, D]."""
        before, targets = hidden[:, self.first - 1 : -1], self.input_ids[:, self.first :]
        log_prob, entropy = self.model.token_stats(before, targets, fast)
        return TokenStats(log_prob=log_prob, entropy=entropy, loss_mask=self.loss_mask)

    # -- held-out spans and rollouts --------------------------------------------------------------

    @cached_property
    def loss_mask(self) -> Tensor | None:
        """[T - first], False for tokens that are held out; None when no token is."""
        if not self.held_out:
            return None
        mask = torch.ones(self.num_targets, dtype=torch.bool)
        for start, end in self.held_out:
            mask[start - self.first : end - self.first] = False
        return mask.to(self.input_ids.device)

    def rollout_starts(self, index: Tensor, rollout_tokens: int) -> Tensor:
        """Clamp positions to where a rollout and its shortest prefix fit into a row.

        A rollout that would overlap a held-out span is moved behind the span, or before it where
        the row ends too soon.

        Args:
            index: [S, G], positions in ``token_stats``: 0 stands for token ``first``.
            rollout_tokens: k.

        Returns:
            [S, G], the first token of each rollout, counted in ``input_ids``.
        """
        last = self.input_ids.shape[1] - rollout_tokens
        lowest = min(max(self.first, self.min_prefix), last)
        starts = (self.first + index).clamp(lowest, last)
        return self._moved_starts(rollout_tokens)[starts] if self.held_out else starts

    @cached_property
    def _moved_starts(self) -> Callable[[int], Tensor]:
        """From k to a table [T] of where a rollout of k tokens from each token on is moved."""

        @lru_cache(maxsize=1)
        def table(rollout_tokens: int) -> Tensor:
            length = self.input_ids.shape[1]
            starts, last = torch.arange(length), length - rollout_tokens
            for start, end in self.held_out:
                overlap = (starts < end) & (starts + rollout_tokens > start)
                starts = starts.where(~overlap, end if end <= last else start - rollout_tokens)
            return starts.to(self.input_ids.device)

        return table


def continuations(input_ids: Tensor, starts: Tensor, tokens: int) -> Tensor:
    """Gather the next ``tokens`` tokens from starts [S, G] on in rows [S, T]: [S G, tokens]."""
    at = starts[..., None] + torch.arange(tokens, device=starts.device)  # [S, G, tokens]
    row = torch.arange(starts.shape[0], device=starts.device)[:, None, None]
    return input_ids[row, at].flatten(0, 1)
