"""A document as the base model reads it: its state at every prefix, which nothing ever changes.

Query-side adaptation changes how a model reads its state, not what the state holds. So the document
is read once, whatever is adapted, asked and answered from it later; spans, rollouts and questions
are short sequences that continue from the state before any of its tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from refine_server.ttt.fast_weights import BASE, FastWeights
from refine_server.ttt.models.base import CausalLM
from refine_server.ttt.models.reader import Reader
from refine_server.ttt.models.state import LayerState, State

SNAPSHOT_TOKENS = 1024
"""Tokens between two kept states of a layer whose state does not hold those of its prefixes. The
state before any other token is read again from the last one kept before it. A multiple of
``BOUNDARY_TOKENS``."""


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
    snapshots: tuple[tuple[LayerState | None, ...], ...]
    """The layers' states after every ``SNAPSHOT_TOKENS`` tokens; None for a layer whose state holds
    those of its prefixes, and empty where all layers' do."""
    entropy: Tensor | None = None
    """[T], entropies in nats of the distributions that predict the tokens, NaN for the first one;
    None where no trace asked for them."""

    @classmethod
    def read(cls, model: CausalLM, input_ids: Tensor, context_tokens: int = 0) -> "FrozenDocument":
        """Read input_ids [1, T] under the base weights."""
        reader = DocumentReader(model, input_ids, context_tokens)
        while not reader.is_done:
            reader.read_piece()
        return reader.document()

    @property
    def tokens(self) -> int:
        """Tokens of the document itself, without the prompt before it."""
        return self.input_ids.shape[1] - self.context_tokens

    @property
    def nbytes(self) -> int:
        """Bytes that the states take."""
        layers = (layer for snapshot in self.snapshots for layer in snapshot)
        return self.state.nbytes + sum(layer.nbytes for layer in layers if layer is not None)

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
        at = kept * SNAPSHOT_TOKENS
        state = self._snapshot(kept - 1, at) if kept else None
        if (missing := self.input_ids[:, at:position]).numel():
            state = self.model(missing, state, BASE).state
        assert state is not None, "position 0 has no state before it"
        return state

    def _snapshot(self, number: int, tokens: int) -> State:
        """Return the state after the first ``tokens`` tokens, from the snapshot of them."""
        position = self.input_ids.new_tensor([tokens])
        layers = (
            whole.prefixes(position) if kept is None else kept
            for whole, kept in zip(self.state.layers, self.snapshots[number], strict=True)
        )
        return State(tuple(layers), position)


class TokenEntropies:
    """Entropies of the distributions that predict a text's tokens, from its hidden states.

    Args:
        model: has the LM head.
        fast: the weights that the text is read under.
    """

    def __init__(self, model: CausalLM, fast: FastWeights = BASE) -> None:
        self._model, self._fast = model, fast
        self._following: list[Tensor] = []

    @torch.no_grad()
    def add(self, hidden: Tensor) -> None:
        """Add the next hidden states [1, n, D]."""
        unused = torch.zeros(hidden.shape[:2], dtype=torch.long, device=hidden.device)
        _, entropy = self._model.token_stats(hidden, unused, self._fast)
        self._following.append(entropy[0])

    def of_tokens(self) -> Tensor:
        """Return the entropies of the T tokens that were read: [T], NaN for the first one."""
        entropy = torch.cat(self._following)  # [T], of the tokens that follow
        return torch.cat([entropy.new_full((1,), torch.nan), entropy[:-1]])


class DocumentReader:
    """Reads a document under the base weights, piece by piece.

    Args:
        model: the base model.
        input_ids: [1, T], the prompt up to the end of the document.
        context_tokens: tokens of the prompt before the document itself.
        with_entropy: whether the entropies of the tokens are computed.
    """

    def __init__(
        self,
        model: CausalLM,
        input_ids: Tensor,
        context_tokens: int = 0,
        *,
        with_entropy: bool = False,
    ) -> None:
        self._entropies = TokenEntropies(model) if with_entropy else None
        self._model, self._input_ids, self._context_tokens = model, input_ids, context_tokens
        self._reader = Reader(model, input_ids)
        self._hidden: Tensor  # [1, D]
        self._snapshots: list[tuple[LayerState | None, ...]] = []

    @property
    def tokens(self) -> int:
        """Tokens of the document that have been read."""
        return max(self._reader.tokens - self._context_tokens, 0)

    @property
    def seconds(self) -> float:
        """Seconds of reading."""
        return self._reader.seconds

    @property
    def is_done(self) -> bool:
        """Whether all tokens have been read."""
        return self._reader.is_done

    def read_piece(self) -> None:
        """Read the next tokens."""
        hidden = self._reader.read_piece()  # [1, n, D]
        if self._entropies is not None:
            self._entropies.add(hidden)
        self._hidden = hidden[:, -1].clone()
        if not self._model.views_prefixes and self._reader.tokens % SNAPSHOT_TOKENS == 0:
            layers = self._reader.state.layers
            self._snapshots.append(tuple(None if x.views_prefixes else x for x in layers))

    def document(self) -> FrozenDocument:
        """Return the document, all of whose tokens have been read."""
        return FrozenDocument(
            model=self._model,
            input_ids=self._input_ids,
            context_tokens=self._context_tokens,
            hidden=self._hidden,
            state=self._reader.state,
            snapshots=tuple(self._snapshots),
            entropy=None if self._entropies is None else self._entropies.of_tokens(),
        )
