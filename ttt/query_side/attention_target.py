"""The attention term: where in the document the question's last token is to look.

Of EASE-TTT (arXiv 2606.06906, section 3): KL(π ‖ a), where a is the attention of the question's
last token over the document's tokens at some layers, a mean over heads, and π gives a share of its
mass to the tokens of the evidence and the rest to all others, evenly. Attention sinks, the prompt
before the document and its first tokens, are in neither: they belong to no content.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from refine_server.ttt.fast_weights import FastWeights
from refine_server.ttt.models.base import CausalLM
from refine_server.ttt.models.state import State
from refine_server.ttt.query_side.frozen_document import FrozenDocument
from refine_server.ttt.refine.inputs.rows import Span

EVIDENCE_MASS = 0.6
"""The share of the target on the evidence (alpha in the paper)."""
SINK_TOKENS = 4
"""Tokens at the beginning of the prompt that attention falls on whatever they say."""
SUPERVISED_LAYERS = (0.5,)
"""The depths of the layers whose attention is compared with the target, as shares of all layers
with attention over the document."""


def supervised_layers(layers: Sequence[int]) -> tuple[int, ...]:
    """Choose the layers whose attention is compared with the target, of those that have one."""
    return tuple(layers[min(int(len(layers) * d), len(layers) - 1)] for d in SUPERVISED_LAYERS)


def log_attention(
    model: CausalLM,
    question: Tensor,
    state: State,
    fast: FastWeights,
    layers: Sequence[int],
    first: int,
) -> Tensor:
    """Compute log a, the attention of a question's last token without the sinks, in the graph.

    Weights that underflow count as the smallest number there is, so that all are finite.

    Args:
        model: has the layers.
        question: [1, Q], what follows the document.
        state: after the document's T tokens.
        fast: the weights that the question is read under.
        layers: whose attention it is.
        first: the first token of the document that counts.

    Returns:
        [layers, T - first], a mean over each layer's heads.
    """
    weights = model.attention_to_prefix(question, state, fast, layers)  # one [1, Hq, T] a layer
    mean = torch.stack([own[0].mean(0)[first:] for own in weights])
    return mean.clamp_min(torch.finfo(mean.dtype).tiny).log().log_softmax(-1)


@dataclass(frozen=True, kw_only=True, slots=True)
class AttentionTarget:
    """The attention that a question is to pay to a frozen document."""

    document: FrozenDocument
    question: Tensor
    """[1, Q], the prompt from the document's end to where the answer begins."""
    layers: tuple[int, ...]
    """The layers whose attention is compared with the target."""
    first: int
    """The first token of the document's ``input_ids`` that the target is about."""
    target: Tensor
    """[T - first], π, which sums to 1."""
    on_evidence: Tensor
    """[T - first], True on tokens of the evidence."""

    @classmethod
    def of(
        cls,
        document: FrozenDocument,
        question: Sequence[int],
        evidence: Sequence[Span],
        layers: Sequence[int],
    ) -> "AttentionTarget":
        """Aim a question at spans of a document, counted in its ``input_ids``.

        Raises:
            ValueError: there is no evidence but among the attention sinks.
        """
        ids = document.input_ids
        first = max(document.context_tokens, SINK_TOKENS)
        on_evidence = torch.zeros(ids.shape[1], dtype=torch.bool, device=ids.device)
        for start, end in evidence:
            on_evidence[start:end] = True
        on_evidence = on_evidence[first:]  # [T - first]
        inside = on_evidence.sum()
        if not inside:
            raise ValueError("the evidence has no token behind the attention sinks")
        outside = on_evidence.shape[0] - inside
        share = EVIDENCE_MASS if int(outside) else 1.0
        target = torch.where(on_evidence, share / inside, (1 - share) / outside.clamp_min(1))
        return cls(
            document=document,
            question=ids.new_tensor(list(question))[None],
            layers=tuple(layers),
            first=first,
            target=target,
            on_evidence=on_evidence,
        )

    def loss(self, fast: FastWeights) -> Tensor:
        """Compute KL(π ‖ a) under ``fast``, a mean over the layers, in the graph: []."""
        log_attention = self._log_attention(fast)  # [layers, T - first]
        target = self.target.to(log_attention.dtype)
        log_target = target.clamp_min(torch.finfo(target.dtype).tiny).log()
        return (target * (log_target - log_attention)).sum(-1).mean()

    @torch.no_grad()
    def evidence_mass(self, fast: FastWeights) -> float:
        """Compute the attention that falls on the evidence under ``fast``, a mean over layers."""
        return float((self._log_attention(fast).exp() * self.on_evidence).sum(-1).mean())

    def _log_attention(self, fast: FastWeights) -> Tensor:
        """Compute the question's attention to the document under ``fast``: [layers, T - first]."""
        own = self.document
        return log_attention(own.model, self.question, own.state, fast, self.layers, self.first)


@dataclass(frozen=True, slots=True)
class AttentionTargets:
    """The targets of several questions about one document; the term is their mean."""

    targets: tuple[AttentionTarget, ...]

    def loss(self, fast: FastWeights) -> Tensor:
        """Compute the mean of the targets' terms under ``fast``, in the graph: []."""
        return torch.stack([target.loss(fast) for target in self.targets]).mean()
