"""The rows of several requests as one batch, and the one forward over all of them."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from refine_server.ttt.fast_weights import FastWeights
from refine_server.ttt.models.segments import token_stats_in_pieces, trunk_in_pieces
from refine_server.ttt.models.state import State
from refine_server.ttt.models.tape import Graph
from refine_server.ttt.models.trunk import Frozen, Trunk
from refine_server.ttt.pieces import Pieces, run_pieces
from refine_server.ttt.refine.inputs.rows import Prefix, Rows, TokenStats, continuations


class RowBatch:
    """The rows of R requests, S rows of each, padded at the end to the longest of T tokens.

    Request r has rows r S … (r + 1) S - 1. A model is causal, so the padding changes nothing that
    stands before it.
    """

    def __init__(self, requests: Sequence[Rows]) -> None:
        self.requests = requests
        self.model = requests[0].model
        self.frozen = Frozen.stack([rows.frozen for rows in requests])
        self.rows_per_request = requests[0].input_ids.shape[0]
        self.state = requests[0].state
        if self.state is not None and len(requests) > 1:
            raise ValueError("rows that continue from a state make a batch of their own")

    def forward(self, fast: FastWeights, graph: Graph) -> Pieces["TrunkBatch"]:
        """Compute one differentiable forward over all rows under the requests' fast weights."""
        trunk = yield from trunk_in_pieces(self.model, self.frozen, fast, self.state, graph)
        return TrunkBatch(self, trunk, fast)

    def rows_of(self, r: int) -> slice:
        """Return the rows of request r."""
        return slice(r * self.rows_per_request, (r + 1) * self.rows_per_request)


class TrunkBatch:
    """The forward over a ``RowBatch``: hidden [R S, T, D] in the graph, and states in its middle.

    Args:
        row_batch: the rows.
        trunk: the forward over them.
        fast: [R, ...], the fast weights that it was computed under.
    """

    def __init__(self, row_batch: RowBatch, trunk: Trunk, fast: FastWeights) -> None:
        self.row_batch, self.trunk, self.fast = row_batch, trunk, fast
        self.hidden = trunk.hidden
        self._token_stats: list[TokenStats] | None = None

    def requests(self) -> list["RequestTrunk"]:
        """Return each request's own part."""
        return [
            RequestTrunk(
                batch=self,
                request=r,
                rows=rows,
                hidden=self.hidden[self.row_batch.rows_of(r), : rows.input_ids.shape[1]],
            )
            for r, rows in enumerate(self.row_batch.requests)
        ]

    @property
    def token_stats(self) -> list[TokenStats]:
        """The statistics of each request's own tokens, padding left out: R of [S, T - first]."""
        return run_pieces(self.read_token_stats(Graph()))

    def read_token_stats(self, graph: Graph) -> Pieces[list[TokenStats]]:
        """Compute ``token_stats`` in pieces, unless that was done."""
        if self._token_stats is None:
            self._token_stats = yield from self._compute_token_stats(graph)
        return self._token_stats

    def _compute_token_stats(self, graph: Graph) -> Pieces[list[TokenStats]]:
        requests, ids = self.row_batch.requests, self.row_batch.frozen.input_ids
        first = min(rows.first for rows in requests)
        log_prob, entropy = yield from token_stats_in_pieces(
            self.row_batch.model, self.hidden, ids[:, first:], self.fast, graph, first=first - 1
        )
        stats = []
        for r, rows in enumerate(requests):
            own = (
                self.row_batch.rows_of(r),
                slice(rows.first - first, rows.input_ids.shape[1] - first),
            )
            stats.append(
                TokenStats(log_prob=log_prob[own], entropy=entropy[own], loss_mask=rows.loss_mask)
            )
        return stats

    def prefixes(self, starts: Tensor) -> Prefix:
        """Take the prefixes that end before starts [R S, G] out of the forward, in its graph."""
        return self.row_batch.requests[0].prefixes(self.trunk, starts, self.fast)

    def continuations(self, starts: Tensor, tokens: int) -> Tensor:
        """Gather the documents' own next tokens from starts [R S, G] on: [R S G, tokens]."""
        return continuations(self.row_batch.frozen.input_ids, starts, tokens)

    @cached_property
    def ends(self) -> State:
        """The states after the last token of every row, R S of them, without graph.

        The trunk's own state is the one after the longest row; the others stand before the padding.
        """
        if len(self.row_batch.requests) == 1:
            return self.trunk.state
        lengths = [rows.input_ids.shape[1] for rows in self.row_batch.requests]
        ends = torch.tensor(lengths, device=self.hidden.device)
        with torch.no_grad():
            return self.trunk.state_at(
                ends.repeat_interleave(self.row_batch.rows_per_request)[:, None]
            )

    @cached_property
    def ends_by_row(self) -> list[State]:
        """``ends`` as states of one row each."""
        return self.ends.split()


@dataclass(frozen=True, kw_only=True, slots=True)
class RequestTrunk:
    """One request's part of the forward over a batch, padding left out."""

    batch: TrunkBatch
    request: int
    """The number of the request in the batch."""
    rows: Rows
    """The request's rows."""
    hidden: Tensor
    """[S, T, D], the hidden states of the request's own tokens."""

    @property
    def token_stats(self) -> TokenStats:
        """The statistics of the request's own tokens, [S, T - first]."""
        return self.batch.token_stats[self.request]

    def end(self) -> Prefix:
        """Return the request's whole rows as S prefixes of what follows."""
        return Prefix(self.hidden[:, -1], self.end_state())

    def end_state(self) -> State:
        """Return the state after the last token of each of the S rows."""
        row_batch = self.batch.row_batch
        if len(row_batch.requests) == 1:
            return self.batch.ends
        return State.stack(self.batch.ends_by_row[row_batch.rows_of(self.request)])
