"""One differentiable reading of a document: below all fast weights once, above them every step."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from refine_server.ttt.models.state import State, Trace, cat_padded


@dataclass(frozen=True, slots=True)
class Frozen:
    """What no fast weight of the request reaches: computed once a document, used by every step."""

    input_ids: Tensor
    """[R, T]."""
    hidden: Tensor | None
    """[R, T, D], the input of layer ``first_layer``; None when the embedding itself adapts."""
    traces: tuple[Trace, ...]
    """Traces of the layers below ``first_layer``."""
    first_layer: int
    """The lowest layer that owns fast weights."""

    @staticmethod
    def stack(requests: Sequence["Frozen"]) -> "Frozen":
        """Put what belongs to several requests into one batch, padded at the end.

        No token sees what follows it, so the padding changes none. All must have the same
        ``first_layer``.
        """
        if len(requests) == 1:
            return requests[0]
        ids = cat_padded([own.input_ids for own in requests], 1)
        hidden = [own.hidden for own in requests if own.hidden is not None]
        traces = zip(*(own.traces for own in requests), strict=True)
        return Frozen(
            ids,
            cat_padded(hidden, 1) if hidden else None,
            tuple(layer[0].stack(layer) for layer in traces),
            requests[0].first_layer,
        )


@dataclass(frozen=True, slots=True)
class Trunk:
    """One differentiable reading of a document; rollouts branch off from ``state_at``."""

    hidden: Tensor
    """[R, T, D], after the final norm."""
    traces: tuple[Trace, ...]
    """One trace a layer."""

    @property
    def state(self) -> State:
        """The state after the last token."""
        R, T, _ = self.hidden.shape
        position = torch.full((R,), T, device=self.hidden.device)
        return State(tuple(trace.final() for trace in self.traces), position)

    def state_at(self, positions: Tensor) -> State:
        """Return the states before the tokens at positions [R, G], in the graph: R G rows."""
        return State(tuple(trace.at(positions) for trace in self.traces), positions.flatten())
