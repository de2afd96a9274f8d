"""A document as the base model reads it: its state at every prefix, which nothing ever changes.

Query-side adaptation changes how a model reads its state, not what the state holds. So the document
is read once, whatever is adapted, asked and answered from it later; spans, rollouts and questions
are short sequences that continue from the state before any of its tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from refine_server.ttt.fast_weights import BASE
from refine_server.ttt.models.base import CausalLM
from refine_server.ttt.models.state import KVState, LayerState, State

SNAPSHOT_TOKENS = 1024
"""Tokens between two kept states of a layer whose state does not hold those of its prefixes. The
state before any other token is read again from the last one kept before it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FrozenDocument:
    """The states of one document under the base model. Any number of requests may share it."""

    model: CausalLM
    input_ids: Tensor
    """[1, T], the prompt up to the end of the document."""
    context_tokens: int
    """Tokens of the prompt before the document itself."""
    hidden: Tensor
    """[1, D], the final hidden state of the last token."""
    state: State
    """The state after the last token, of one row."""
    snapshots: tuple[State, ...]
    """The states after every ``SNAPSHOT_TOKENS`` tokens; none where ``state`` holds them all."""

    @classmethod
    @torch.no_grad()
    def read(cls, model: CausalLM, input_ids: Tensor, context_tokens: int = 0) -> "FrozenDocument":
        """Read input_ids [1, T] under the base weights."""
        T = input_ids.shape[1]
        state: State | None = None
        snapshots: list[State] = []
        # A model that views prefixes needs no snapshots, so that it is read in its own chunks.
        piece = (model.prefill_chunk or T) if model.views_prefixes else SNAPSHOT_TOKENS
        for ids in input_ids.split(piece, dim=1):
            output = model(ids, state, BASE)
            state = output.state
            snapshots.append(state)
        assert state is not None
        joined = (s.joined() if isinstance(s, KVState) else s for s in state.layers)
        state = State(tuple(joined), state.position)
        return cls(
            model=model,
            input_ids=input_ids,
            context_tokens=context_tokens,
            hidden=output.hidden[:, -1],
            state=state,
            snapshots=() if model.views_prefixes else tuple(snapshots),
        )

    @property
    def tokens(self) -> int:
        """Tokens of the document itself, without the prompt before it."""
        return self.input_ids.shape[1] - self.context_tokens

    @property
    def nbytes(self) -> int:
        """Bytes that the states take; snapshots share the keys and values of ``state``."""
        layers = (layer for snapshot in self.snapshots[:-1] for layer in snapshot.layers)
        own = sum(layer.nbytes for layer in layers if not layer.views_prefixes)
        return self.state.nbytes + own

    @torch.no_grad()
    def states_before(self, positions: Tensor) -> State:
        """Return the states before the tokens at positions [G], of G rows, without graph."""
        layers: Sequence[LayerState]
        if self.model.views_prefixes:
            layers = [layer.prefixes(positions) for layer in self.state.layers]
            return State(tuple(layers), positions)
        rows = [self._read_up_to(int(position)) for position in positions]
        layers = [
            layer.prefixes(positions) if layer.views_prefixes else type(layer).stack(own)
            for layer, *own in zip(self.state.layers, *(row.layers for row in rows), strict=True)
        ]
        return State(tuple(layers), positions)

    def _read_up_to(self, position: int) -> State:
        """Read the tokens before a position, from the last snapshot before it on."""
        kept = position // SNAPSHOT_TOKENS
        state = self.snapshots[kept - 1] if kept else None
        if (missing := self.input_ids[:, kept * SNAPSHOT_TOKENS : position]).numel():
            state = self.model(missing, state, BASE).state
        assert state is not None, "position 0 has no state before it"
        return state
