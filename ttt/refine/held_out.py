"""The held-out guard: evaluates adapted weights on spans of the document that no loss reads.

The loss that fast weights are adapted on always falls, so it cannot say whether they became better.
Some spans of the document are therefore kept out of every loss and every rollout; the weights are
evaluated on them between the steps, and the best ones are kept.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from refine_server.ttt.fast_weights import FastWeights
from refine_server.ttt.interface.measures import EvalResult
from refine_server.ttt.models.device import synchronize
from refine_server.ttt.models.segments import (
    freeze_in_pieces,
    token_stats_in_pieces,
    trunk_in_pieces,
)
from refine_server.ttt.models.state import State
from refine_server.ttt.models.tape import Graph
from refine_server.ttt.models.trunk import Frozen
from refine_server.ttt.pieces import Pieces, timed
from refine_server.ttt.refine.inputs.row_batch import RequestTrunk, RowBatch
from refine_server.ttt.refine.inputs.rows import Rows, Span

SPAN_TOKENS = 16
"""Tokens of a held-out span, and of the text before it that serves as its cue."""
BLOCK_TOKENS = 128
"""One span is held out of each block of so many tokens of the document."""
MAX_PROBES = 8
"""The most spans whose tokens are decoded behind their cues in one evaluation."""
MAX_EVALUATIONS = 8
"""The most evaluations in one adaptation: where the steps read spans, each costs a forward over the
document."""
PATIENCE = 3
"""Evaluations in a row that may bring no better weights before the steps end. Of 48 adaptations
of eight steps a patience of three keeps the same weights as eight in all, two in 45
(benchmarks/README.md)."""


def held_out_spans(
    document: Rows, taken: Sequence[Span], rollout_tokens: int, generator: torch.Generator
) -> list[Span]:
    """Choose spans of a document to hold out, one at a random place in each of its blocks.

    Args:
        document: one row.
        taken: spans that are adapted on. A block that they fill has no held-out span.
        rollout_tokens: k; a rollout fits between any two held-out spans.
        generator: the only source of randomness.
    """
    first = max(document.first, document.min_prefix) + max(rollout_tokens, SPAN_TOKENS)
    last = document.input_ids.shape[1]
    return place_spans(first, last, taken, rollout_tokens, generator)


def place_spans(
    first: int, last: int, taken: Sequence[Span], gap: int, generator: torch.Generator
) -> list[Span]:
    """Choose one span at a random place in each block of the tokens ``first`` … ``last`` - 1.

    Args:
        first: the lowest token that a span may begin with; its cue stands before it.
        last: one beyond the document's last token.
        taken: spans that no held-out span may overlap.
        gap: the fewest tokens between two held-out spans.
        generator: the only source of randomness.
    """
    spans: list[Span] = []
    for block in range(first, last, BLOCK_TOKENS):
        lowest = max(block, spans[-1].end + gap) if spans else block
        free = [
            start
            for start in range(lowest, min(block + BLOCK_TOKENS, last - SPAN_TOKENS + 1))
            if all(start + SPAN_TOKENS <= a or b <= start for a, b in taken)
        ]
        if free:
            start = free[int(torch.randint(len(free), (), generator=generator))]
            spans.append(Span(start, start + SPAN_TOKENS))
    return spans


class HeldOutEvaluator:
    """Evaluates one request's fast weights on its document's held-out spans, and keeps the best.

    Weights beat the base weights when the spans' tokens are likelier in their place (next-token
    loss) and when greedy decoding, at the end of the document, repeats at least as many of them
    behind a cue (accuracy, teacher-forced). A question needs the second: weights that have learned
    the style of a document often recall it worse. Of all weights that beat the base weights, those
    with the lowest loss are kept.

    Evaluation 0 is that of the base weights: before the first step fast weights equal them in
    effect.

    Args:
        document: one row with ``held_out`` spans.
        fast: the fast weights that the steps write to, in place.
        steps: how many steps are to be made at most.
    """

    def __init__(self, document: Rows, fast: FastWeights, steps: int) -> None:
        self.document, self.fast = document, fast
        self.model = document.model
        self.every = -(-steps // MAX_EVALUATIONS)
        ids, spans = document.input_ids, document.held_out
        tokens = [torch.arange(start, end, device=ids.device) for start, end in spans]
        self.tokens = torch.cat(tokens)  # [N], where all held-out tokens are
        chosen = spans[:: -(-len(spans) // MAX_PROBES)]
        probes = [ids[0, start - SPAN_TOKENS : end] for start, end in chosen]
        self.probe_ids = torch.stack(probes)  # [P, 2 SPAN_TOKENS], a cue and its span in each row
        self.probe_hidden: Tensor | None = None
        """[P, 2 SPAN_TOKENS, D], of the probes below all fast weights, once it was computed."""
        self.results: list[EvalResult] = []
        self._best: tuple[EvalResult, FastWeights] | None = None
        self._since_best = 0

    @property
    def out_of_patience(self) -> bool:
        """Whether no better weights are to be expected of more steps."""
        return self._since_best >= PATIENCE

    def is_due(self, steps_made: int) -> bool:
        """Return whether the weights are to be evaluated between so many steps and the next one."""
        return steps_made % self.every == 0

    @torch.no_grad()
    def evaluate(self, steps_made: int, trunk: RequestTrunk | None = None) -> Pieces[None]:
        """Evaluate the present weights, which so many steps made, in pieces.

        Args:
            steps_made: 0 for the base weights.
            trunk: the forward over the document under the present weights, if there is one.
        """
        if trunk is None:
            forward = yield from RowBatch([self.document]).forward(self.fast, Graph())
            [trunk] = forward.requests()
            yield
        yield from evaluate_batch([self], [steps_made], trunk.hidden, trunk.end_state())

    def record(self, result: EvalResult) -> None:
        """Record a result, and keep a copy of the weights if none were better.

        A step whose batch failed is tried again alone: its second result is dropped.
        """
        if self.results and self.results[-1].step == result.step:
            return
        self.results.append(result)
        if result.step and self._beats_base(result) and self._is_best(result):
            self._best, self._since_best = (result, self.fast.clone()), 0
        elif result.step:
            self._since_best += 1

    def _beats_base(self, result: EvalResult) -> bool:
        base = self.results[0]
        return result.loss < base.loss and result.accuracy >= base.accuracy

    def _is_best(self, result: EvalResult) -> bool:
        return self._best is None or result.loss < self._best[0].loss

    @torch.no_grad()
    def restore_best(self) -> int:
        """Write the best weights back; return the step that made them, 0 if the base is better."""
        if self._best is None:
            return 0
        result, best = self._best
        for own, values in zip(self.fast.parameters(), best.parameters(), strict=True):
            own.copy_(values)
        return result.step


@torch.no_grad()
def evaluate_batch(
    evaluators: Sequence[HeldOutEvaluator], steps_made: Sequence[int], hidden: Tensor, state: State
) -> Pieces[None]:
    """Evaluate the weights of R requests in one forward, in pieces, and record each result.

    Args:
        evaluators: R of them.
        steps_made: how many steps made the weights of each.
        hidden: [R, T, D], of each document under those weights, padded at the end.
        state: R rows, each after its document's own last token.
    """
    fast = FastWeights.stack([own.fast for own in evaluators])
    wait = partial(synchronize, hidden.device)
    figures = timed(_figures(evaluators, hidden, state, fast), wait)
    (losses, accuracies), seconds = yield from figures
    seconds /= len(evaluators)
    for own, step, loss, accuracy in zip(evaluators, steps_made, losses, accuracies, strict=True):
        own.record(EvalResult(step=step, loss=loss, accuracy=accuracy, seconds=seconds))


def _figures(
    evaluators: Sequence[HeldOutEvaluator], hidden: Tensor, state: State, fast: FastWeights
) -> Pieces[tuple[list[float], list[float]]]:
    losses = yield from _losses(evaluators, hidden, fast)
    yield
    accuracies = yield from _accuracies(evaluators, state.detach(), fast)
    return losses, accuracies


def _losses(
    evaluators: Sequence[HeldOutEvaluator], hidden: Tensor, fast: FastWeights
) -> Pieces[list[float]]:
    """Compute the mean next-token loss of each document's held-out tokens in their places."""
    counts = [own.tokens.shape[0] for own in evaluators]
    at = torch.stack([_padded(own.tokens, max(counts)) for own in evaluators])  # [R, N]
    targets = [own.document.input_ids[0, own.tokens] for own in evaluators]
    row = torch.arange(len(evaluators), device=at.device)[:, None]
    padded = torch.stack([_padded(t, max(counts)) for t in targets])  # [R, N]
    model, before = evaluators[0].model, hidden[row, at - 1]  # [R, N, D]
    log_prob, _ = yield from token_stats_in_pieces(model, before, padded, fast, Graph())
    return [-float(own[:count].mean()) for own, count in zip(log_prob, counts, strict=True)]


def _accuracies(
    evaluators: Sequence[HeldOutEvaluator], state: State, fast: FastWeights
) -> Pieces[list[float]]:
    """Compute the share of held-out tokens that greedy decoding repeats behind their cues."""
    model, counts = evaluators[0].model, [own.probe_ids.shape[0] for own in evaluators]
    state = state.repeat(max(counts))
    frozen = yield from _frozen_probes(evaluators, max(counts), state, fast)
    yield
    trunk = yield from trunk_in_pieces(model, frozen, fast, state, Graph())
    yield
    predicting = trunk.hidden[:, SPAN_TOKENS - 1 : -1].flatten(0, 1)  # of [R P, 2 SPAN_TOKENS, D]
    greedy = model.head_logits(predicting, fast).argmax(-1)  # [R P SPAN_TOKENS]
    right = (greedy == frozen.input_ids[:, SPAN_TOKENS:].flatten()).float()
    return [
        float(own.view(-1, SPAN_TOKENS)[:count].mean())
        for own, count in zip(right.chunk(len(evaluators)), counts, strict=True)
    ]


def _frozen_probes(
    evaluators: Sequence[HeldOutEvaluator], rows: int, state: State, fast: FastWeights
) -> Pieces[Frozen]:
    """Compute the forward over the probes below all fast weights, from the documents' ends.

    Each evaluator computes it once. Nothing is read after a probe, so no traces are kept.

    Args:
        evaluators: R of them.
        rows: P, the probes of each, filled up with copies of its last one.
        state: R P rows, each after its document.
        fast: of the R requests.
    """
    ids = torch.cat([_padded(own.probe_ids, rows) for own in evaluators])
    known = [_padded(own.probe_hidden, rows) for own in evaluators if own.probe_hidden is not None]
    if len(known) == len(evaluators):
        return Frozen(ids, torch.cat(known), (), fast.first_layer or 0)
    frozen = yield from freeze_in_pieces(evaluators[0].model, ids, fast, state)
    if frozen.hidden is not None:
        for own, hidden in zip(evaluators, frozen.hidden.chunk(len(evaluators)), strict=True):
            probes = own.probe_ids.shape[0]
            own.probe_hidden = hidden[:probes].clone()  # a view would keep all requests' rows
    return replace(frozen, traces=())


def _padded(rows: Tensor, count: int) -> Tensor:
    """Fill rows up to ``count`` with copies of the last one."""
    missing = count - rows.shape[0]
    return torch.cat([rows, rows[-1:].expand(missing, *rows.shape[1:])]) if missing else rows
