"""The document as the model sees it: its entropies, and the question's attention to it, binned."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from refine_server.ttt.fast_weights import FastWeights
from refine_server.ttt.interface.traces import MAX_BINS, DocumentTrace, TextSpan
from refine_server.ttt.models.base import CausalLM
from refine_server.ttt.models.state import State
from refine_server.ttt.query_side.attention_target import (
    SINK_TOKENS,
    log_attention,
)
from refine_server.ttt.refine.inputs.rows import Span
from refine_server.ttt.tracing.characters import Characters


@dataclass(frozen=True, kw_only=True, slots=True)
class TracedDocument:
    """A document, and what is marked in it. Tokens are counted in ``input_ids``."""

    model: CausalLM
    input_ids: Tensor
    """[1, T], the prompt up to the end of the document."""
    context_tokens: int
    """Tokens of the prompt before the document itself."""
    characters: Characters
    """Of the T - context_tokens tokens of the document."""
    questions: Sequence[Sequence[int]]
    """What follows the document where its attention is traced; empty where no question is known."""
    evidence: Sequence[Span]
    spans: Sequence[Span] = ()
    """What the steps read; empty where it is the whole document."""
    held_out: Sequence[Span] = ()

    def describe(
        self,
        stage: Literal["before", "after"],
        step: int,
        entropy: Tensor,
        attention: Tensor | None,
    ) -> DocumentTrace:
        """Return the trace of the document.

        Args:
            stage: before the steps or after them.
            step: the step that made the weights.
            entropy: [T], of the distribution that predicts each token; NaN where it is not known.
            attention: [T], as ``attend`` computes it.
        """
        N = self.input_ids.shape[1] - self.context_tokens
        size = -(-N // MAX_BINS)
        own = self.characters
        mass = None if attention is None else attention[self.context_tokens :]
        return DocumentTrace(
            stage=stage,
            step=step,
            tokens=N,
            tokens_per_bin=size,
            starts=own.starts[::size],
            ends=tuple(own.ends[min(at + size, N) - 1] for at in range(0, N, size)),
            entropy=tuple(
                None if value != value else round(value, 3)
                for value in _bins(entropy[self.context_tokens :], size).nanmean(-1).tolist()
            ),
            attention=None if mass is None else _rounded(_bins(mass, size).nansum(-1)),
            attention_layers=() if mass is None else self._layers,
            evidence=self._texts(self.evidence),
            evidence_attention=None if attention is None else self._on_evidence(attention),
            spans=self._texts(self.spans),
            held_out=self._texts(self.held_out),
        )

    @torch.no_grad()
    def attend(self, state: State, fast: FastWeights) -> Tensor | None:
        """Compute the questions' attention to the document's tokens, without sinks: [T].

        A mean over the questions, their heads, and the upper half of the layers with attention to
        the whole document. None where there is no question, or no such layer.

        Args:
            state: after the document.
            fast: the weights that the questions are read under.
        """
        first, T = max(self.context_tokens, SINK_TOKENS), self.input_ids.shape[1]
        if not self._layers or not self.questions or first >= T:
            return None
        layers = self._layers
        asked = [self.input_ids.new_tensor([question]) for question in self.questions]  # [1, Q]
        shares = [log_attention(self.model, q, state, fast, layers, first) for q in asked]
        mean = torch.stack(shares).exp().mean((0, 1))  # of [questions, layers, T - first]
        return torch.cat([mean.new_zeros(first), mean])

    @property
    def _layers(self) -> tuple[int, ...]:
        """The upper half of the layers with attention: they retrieve content, and they change."""
        layers = self.model.attention_layers
        return tuple(layers[len(layers) // 2 :])

    def _on_evidence(self, attention: Tensor) -> float | None:
        if not self.evidence:
            return None
        marked = torch.zeros_like(attention, dtype=torch.bool)
        for start, end in self.evidence:
            marked[start:end] = True
        return float(f"{float(attention[marked].sum()):.4g}")

    def _texts(self, spans: Sequence[Span]) -> tuple[TextSpan, ...]:
        context = self.context_tokens
        return tuple(self.characters.span(start - context, end - context) for start, end in spans)


def _bins(values: Tensor, size: int) -> Tensor:
    """Cut values [N] into bins, the last one filled up with NaN: [bins, size]."""
    missing = -values.shape[0] % size
    filled = torch.cat([values.float(), values.new_full((missing,), torch.nan, dtype=torch.float)])
    return filled.view(-1, size)


def _rounded(values: Tensor) -> tuple[float, ...]:
    return tuple(float(f"{value:.4g}") for value in values.tolist())
