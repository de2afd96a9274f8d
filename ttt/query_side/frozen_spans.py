"""Spans of a frozen document as the rows of a REFINE step."""

from collections.abc import Sequence

import torch
from torch import Tensor
from typing_extensions import override

from refine_server.ttt.fast_weights import FastWeights
from refine_server.ttt.models.state import State
from refine_server.ttt.models.trunk import Trunk
from refine_server.ttt.query_side.frozen_document import FrozenDocument
from refine_server.ttt.refine.inputs.rows import Prefix, Rows, Span


class FrozenSpans(Rows):
    """S spans of L tokens, each read in its place: from the document's state before it.

    A row is a span and the one token before it, which predicts the span's first: [S, 1 + L].
    Rollouts start from the document's state at their position, not from the span's own, so that
    they cost their own tokens and one more.

    Args:
        document: holds the spans; nothing that a step changes changes its states.
        spans: of one length, counted in the document's ``input_ids``; a span begins at token 2 or
            later.
        fast: fast weights that steps will change.
        positions: how many rollout positions each span has.
    """

    def __init__(
        self,
        document: FrozenDocument,
        spans: Sequence[Span],
        fast: FastWeights,
        *,
        positions: int = 1,
    ) -> None:
        self.document = document
        ids = document.input_ids
        self.begins = torch.tensor([start - 1 for start, _ in spans], device=ids.device)  # [S]
        self.state = document.states_before(self.begins)
        rows = torch.stack([ids[0, start - 1 : end] for start, end in spans])  # [S, 1 + L]
        super().__init__(
            document.model, rows, fast, context_tokens=1, positions=positions, min_prefix=1
        )
        self.places = self.begins[:, None] + torch.arange(rows.shape[1], device=ids.device)

    @override
    def prefixes(self, trunk: Trunk, starts: Tensor, fast: FastWeights) -> Prefix:
        # Only the token before each rollout is read under ``fast``; what is before it is frozen.
        last = starts - 1  # [S, G], counted in the rows
        ids = self.input_ids.gather(1, last).view(-1, 1)  # [S G, 1]
        output = self.model(ids, self._states_before(last), fast)
        return Prefix(output.hidden[:, 0], output.state)

    @torch.no_grad()
    def _states_before(self, last: Tensor) -> State:
        """Return the document's states before the tokens at last [S, G] of the rows: S G rows."""
        at = (self.begins[:, None] + last).flatten()  # [S G], counted in the document
        if self.model.views_prefixes:
            return self.document.states_before(at)
        own = list(zip(self.document.state.layers, self.base_trunk.traces, strict=True))
        if not all(state.views_prefixes or trace.branches_anywhere for state, trace in own):
            return self.document.states_before(at)  # read again from the document's snapshots
        layers = (s.prefixes(at) if s.views_prefixes else trace.at(last) for s, trace in own)
        return State(tuple(layers), at)
