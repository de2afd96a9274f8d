"""When an adaptation must not be used, and the reasons that the answer then names.

The loss that a copy was stepped on always falls, so it says nothing about the copy. ``Judge``
keeps spans of the document out of the loss and judges the copy on them.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from refine_server.ttt.fast_weights import FastWeights
from refine_server.ttt.models.base import CausalLM, Frozen
from refine_server.ttt.models.state import State
from refine_server.ttt.types import Judgement

NON_FINITE_LOSS = "non_finite_loss"
NON_FINITE_GRADIENT = "non_finite_gradient"
NON_FINITE_WEIGHTS = "non_finite_weights"
KEPT_BASE = "kept_base"
DOCUMENT_TOO_SHORT = "document_too_short"
NOTHING_SIMILAR = "nothing_similar"
"""No word of the query occurs in the document: there is nothing to step on."""
NO_IMPROVEMENT = "no_improvement"
"""Why no more steps were made: ``PATIENCE`` judgements in a row brought no better copy."""

SPAN = 16
"""Tokens of a held-out span, and of the text before it that serves as its cue."""
BLOCK = 128
"""One span is held out of every so many tokens of the document."""
MAX_PROBES = 8
MAX_JUDGEMENTS = 8
"""Most times that one adaptation is judged: in the local form each costs a reading."""
PATIENCE = 3
"""Judgements in a row that may bring no better copy before no more steps are made. Of 48
adaptations of eight steps three keep the same copy as eight in all, two in 45
(benchmarks/README.md)."""

Span = tuple[int, int]
"""First token of a span and the one after its last, counted in the document's ``input_ids``."""


def reject_step(loss: float, grad_norm: float) -> str | None:
    """Why the update that this loss and gradient ask for must not be made, or None."""
    if not math.isfinite(grad_norm) and math.isfinite(loss):
        return NON_FINITE_GRADIENT
    return reject_loss(loss)


def reject_weights(fast: FastWeights) -> str | None:
    """Why the adapted weights must not be used, or None."""
    return None if fast.is_finite() else NON_FINITE_WEIGHTS


def reject_loss(loss: float) -> str | None:
    """Why weights under which the next-token loss is this must not be used, or None."""
    return None if math.isfinite(loss) else NON_FINITE_LOSS


def hold_out(
    first: int, last: int, taken: Sequence[Span], gap: int, generator: torch.Generator
) -> list[Span]:
    """Spans that no loss will read: one at a random place in every block of tokens first … last.

    Args:
        first: the lowest token that a span may begin with; ``SPAN`` tokens must stand before it.
        last: one beyond the document's last token.
        taken: spans that will be stepped on. A block that they fill has none.
        gap: tokens between two spans at least, so that a rollout fits in between.
        generator: the only source of randomness.
    """
    spans: list[Span] = []
    for block in range(first, last, BLOCK):
        lowest = max(block, spans[-1][1] + gap) if spans else block
        free = [
            start
            for start in range(lowest, min(block + BLOCK, last - SPAN + 1))
            if all(start + SPAN <= a or b <= start for a, b in taken)
        ]
        if free:
            start = free[int(torch.randint(len(free), (), generator=generator))]
            spans.append((start, start + SPAN))
    return spans


@dataclass(frozen=True)
class Probes:
    """Held-out spans to be repeated after the document, each behind the text that stood before it.

    ids: [P, 2 SPAN]. frozen: their reading below all fast weights, after the document.
    """

    ids: Tensor
    frozen: Frozen


class Judge:
    """Judges a copy on the document's held-out spans, and keeps the best.

    A copy beats the base model when the spans are likelier in their place (next-token loss) and
    when, at the document's end, at least as many of their tokens are repeated rightly behind a cue
    (the reward of greedy rollouts, teacher-forced). The second is what a question needs: a copy
    that has learned a document's manner often reads it worse. Of the copies that beat the base the
    one with the lowest loss is kept.

    Step 0 is the base model: before the first step a copy equals it in effect.
    """

    def __init__(
        self, model: CausalLM, input_ids: Tensor, spans: Sequence[Span], fast: FastWeights
    ) -> None:
        self.model, self.fast = model, fast
        self.input_ids = input_ids
        at = [torch.arange(*span, device=input_ids.device) for span in spans]
        self.tokens = torch.cat(at)
        every = -(-len(spans) // MAX_PROBES)
        cues = [input_ids[0, start - SPAN : end] for start, end in spans[::every]]
        self.probe_ids = torch.stack(cues)
        self.probes: Probes | None = None
        self.judgements: list[Judgement] = []
        self._kept: tuple[Judgement, FastWeights] | None = None
        self._since_kept = 0

    @property
    def out_of_patience(self) -> bool:
        """Whether more steps are not to be expected to bring a better copy."""
        return self._since_kept >= PATIENCE

    @torch.no_grad()
    def see(self, step: int, hidden: Tensor, state: State) -> None:
        """Judge the present weights, which ``step`` steps made, from the document read by them.

        Once only: a step whose batch failed is tried again alone.

        Args:
            hidden: [1, T, D], of the document's tokens.
            state: after them.
        """
        if self.judgements and self.judgements[-1].step == step:
            return
        judgement = Judgement(step, self._loss(hidden), self._reward(state))
        self.judgements.append(judgement)
        if step and self._beats_base(judgement) and self._is_best(judgement):
            self._kept, self._since_kept = (judgement, self.fast.clone()), 0
        elif step:
            self._since_kept += 1

    def _loss(self, hidden: Tensor) -> float:
        before = hidden[:, self.tokens - 1]
        log_prob, _ = self.model.token_stats(before, self.input_ids[:, self.tokens], self.fast)
        return -float(log_prob.mean())

    def _reward(self, state: State) -> float:
        state = state.detach().repeat(self.probe_ids.shape[0])
        if self.probes is None:
            self.probes = Probes(
                self.probe_ids, self.model.freeze(self.probe_ids, self.fast, state)
            )
        hidden = self.model.trunk(self.probes.frozen, self.fast, state).hidden
        said = self.model.head_logits(hidden[:, SPAN - 1 : -1].flatten(0, 1), self.fast).argmax(-1)
        return float((said == self.probe_ids[:, SPAN:].flatten()).float().mean())

    def _beats_base(self, judgement: Judgement) -> bool:
        base = self.judgements[0]
        return judgement.loss < base.loss and judgement.reward >= base.reward

    def _is_best(self, judgement: Judgement) -> bool:
        return self._kept is None or judgement.loss < self._kept[0].loss

    @torch.no_grad()
    def restore(self) -> int:
        """Write the kept values back; the step that made them, 0 if none beat the base."""
        if self._kept is None:
            return 0
        judgement, kept = self._kept
        for own, values in zip(self.fast.parameters(), kept.parameters(), strict=True):
            own.copy_(values)
        return judgement.step
