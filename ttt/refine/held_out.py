"""When an adaptation must not be used, and the reasons that the answer then names.

The loss that a copy was stepped on always falls, so it says nothing about the copy. ``Judge``
keeps spans of the document out of the loss and judges the copy on them.
"""

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from refine_server.ttt.fast_weights import FastWeights
from refine_server.ttt.interface.reports import Judgement
from refine_server.ttt.models.base import CausalLM
from refine_server.ttt.models.state import State
from refine_server.ttt.models.trunk import Frozen

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
        self.probe_ids = torch.stack(cues)  # [P, 2 SPAN]
        self.below: Tensor | None = None  # [P, 2 SPAN, D], read below all fast weights
        self.judgements: list[Judgement] = []
        self._kept: tuple[Judgement, FastWeights] | None = None
        self._since_kept = 0

    @property
    def out_of_patience(self) -> bool:
        """Whether more steps are not to be expected to bring a better copy."""
        return self._since_kept >= PATIENCE

    def see(self, step: int, hidden: Tensor, state: State) -> None:
        """Judge the present weights, which ``step`` steps made, from the document read by them.

        Args:
            hidden: [1, T, D], of the document's tokens.
            state: after them.
        """
        see_together([self], [step], hidden, state)

    def note(self, judgement: Judgement) -> None:
        """Keep a copy of the weights that were judged if none was better.

        Once only: a step whose batch failed is tried again alone.
        """
        if self.judgements and self.judgements[-1].step == judgement.step:
            return
        self.judgements.append(judgement)
        if judgement.step and self._beats_base(judgement) and self._is_best(judgement):
            self._kept, self._since_kept = (judgement, self.fast.clone()), 0
        elif judgement.step:
            self._since_kept += 1

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


@torch.no_grad()
def see_together(
    judges: Sequence[Judge], steps: Sequence[int], hidden: Tensor, state: State
) -> None:
    """Have every judge judge its copy, which so many steps made, all in one reading.

    Args:
        hidden: [R, T, D], a row for each judge's document, padded at the end to the longest.
        state: R rows, each after its document's own last token.
    """
    fast = FastWeights.stack([judge.fast for judge in judges])
    losses, rewards = _losses(judges, hidden, fast), _rewards(judges, state.detach(), fast)
    for judge, step, loss, reward in zip(judges, steps, losses, rewards, strict=True):
        judge.note(Judgement(step, loss, reward))


def _losses(judges: Sequence[Judge], hidden: Tensor, fast: FastWeights) -> list[float]:
    """Mean next-token loss of every document's held-out tokens, in their places."""
    counts = [judge.tokens.shape[0] for judge in judges]
    at = torch.stack([_filled(judge.tokens, max(counts)) for judge in judges])  # [R, N]
    targets = [judge.input_ids[0, judge.tokens] for judge in judges]
    row = torch.arange(len(judges), device=at.device)[:, None]
    log_prob, _ = judges[0].model.token_stats(
        hidden[row, at - 1], torch.stack([_filled(t, max(counts)) for t in targets]), fast
    )
    return [-float(own[:count].mean()) for own, count in zip(log_prob, counts, strict=True)]


def _rewards(judges: Sequence[Judge], state: State, fast: FastWeights) -> list[float]:
    """Share of the held-out tokens that are repeated rightly after every document, behind cues."""
    model, counts = judges[0].model, [judge.probe_ids.shape[0] for judge in judges]
    state = state.repeat(max(counts))
    frozen = _probes(judges, max(counts), state, fast)
    hidden = model.trunk(frozen, fast, state).hidden
    said = model.head_logits(hidden[:, SPAN - 1 : -1].flatten(0, 1), fast).argmax(-1)
    right = (said == frozen.input_ids[:, SPAN:].flatten()).float()
    return [
        float(own.view(-1, SPAN)[:count].mean())
        for own, count in zip(right.chunk(len(judges)), counts, strict=True)
    ]


def _probes(judges: Sequence[Judge], rows: int, state: State, fast: FastWeights) -> Frozen:
    """So many rows of probes of every judge, read after its document; below all fast weights once.

    What that leaves behind is not kept: nothing is read after a probe.
    """
    ids = torch.cat([_filled(judge.probe_ids, rows) for judge in judges])
    known = [_filled(judge.below, rows) for judge in judges if judge.below is not None]
    if len(known) == len(judges):
        return Frozen(ids, torch.cat(known), (), fast.first_layer or 0)
    frozen = judges[0].model.freeze(ids, fast, state)
    if frozen.hidden is not None:
        for judge, below in zip(judges, frozen.hidden.chunk(len(judges)), strict=True):
            judge.below = below[: judge.probe_ids.shape[0]].clone()  # no other request's rows
    return replace(frozen, traces=())


def _filled(rows: Tensor, count: int) -> Tensor:
    """``count`` rows, what is missing filled up with the last one."""
    missing = count - rows.shape[0]
    return torch.cat([rows, rows[-1:].expand(missing, *rows.shape[1:])]) if missing else rows
