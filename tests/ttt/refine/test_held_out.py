"""The guard evaluates weights on held-out tokens and keeps the best."""

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import Tensor

from refine_server.ttt.batching import run as drive
from refine_server.ttt.document import AdaptedDocument
from refine_server.ttt.fast_weights import FastWeights
from refine_server.ttt.interface.config import AdaptConfig, OnDocument, OnSpans
from refine_server.ttt.interface.measures import EvalResult
from refine_server.ttt.interface.reports import StepReport
from refine_server.ttt.models import CausalLM
from refine_server.ttt.pieces import run_pieces
from refine_server.ttt.refine import guard, held_out
from refine_server.ttt.refine.held_out import (
    BLOCK_TOKENS,
    SPAN_TOKENS,
    HeldOutEvaluator,
    held_out_spans,
    place_spans,
)
from refine_server.ttt.refine.inputs.rows import Rows, Span
from refine_server.ttt.refine.loop import adapt
from refine_server.ttt.refine.step import AdaptationRun, AdaptStep
from support.small_models import Families, Perturbed, Tokens
from support.steps import prepared, step_alone

SHORTEST = 52
"""Tokens of the shortest document that can be adapted to with the guard, the header included."""


@pytest.fixture(params=["delta_net", "overlay"])
def model(request: pytest.FixtureRequest, families: Families) -> CausalLM:
    return families[request.param](torch.float64)


def config(**changes: object) -> AdaptConfig:
    defaults = {
        "rollouts": {"positions": 4, "per_position": 2},
        "optimizer": {"steps": 3, "learning_rate": 3e-3},
        "fast_weights": {"targets": "all"},
    }
    return AdaptConfig(**defaults).updated(**changes)


def adapted_to(
    model: CausalLM,
    ids: Tensor,
    settings: AdaptConfig,
    accident: Callable[[FastWeights], None] = lambda fast: None,
) -> tuple[AdaptedDocument, Rows]:
    """Adapt; ``accident`` happens to the fast weights after the second step."""
    fast = model.new_fast_weights(settings.fast_weights.targets, 8, 0)
    document = Rows(model, ids, fast, positions=settings.rollouts.positions)

    def on_step(report: StepReport) -> None:
        if report.step == 2:
            accident(fast)

    return drive(adapt(document, fast, settings, on_step=on_step)), document


def ruin(fast: FastWeights) -> None:
    for tensor in fast.parameters():
        tensor.data *= 50.0


def repeating(tokens: Tokens, period: int, length: int) -> Tensor:
    """A text whose held-out parts can be learned from the rest."""
    return tokens(1, period).repeat(1, -(-length // period))[:, :length]


def evaluator_of(document: Rows, fast: FastWeights) -> HeldOutEvaluator:
    document.held_out = held_out_spans(document, [], 5, torch.Generator().manual_seed(0))
    return HeldOutEvaluator(document, fast, steps=8)


# -- which spans are held out ------------------------------------------------------------------


@pytest.mark.parametrize("taken", [[], [Span(60, 92), Span(128, 256), Span(300, 301)]])
@pytest.mark.parametrize("last", [57, 130, 257, 511])
def test_one_span_of_each_block_is_held_out(taken: list[Span], last: int) -> None:
    spans = place_spans(41, last, taken, 5, torch.Generator().manual_seed(0))
    assert spans == place_spans(41, last, taken, 5, torch.Generator().manual_seed(0))
    assert all(end - start == SPAN_TOKENS for start, end in spans)
    assert all(start >= 41 and end <= last for start, end in spans)
    assert all(b.start - a.start >= SPAN_TOKENS + 5 for a, b in pairwise(spans))
    assert all(end <= a or b <= start for start, end in spans for a, b in taken)
    blocks = -(-(last - 41) // BLOCK_TOKENS)
    assert len(spans) <= blocks
    assert taken or len(spans) >= blocks - 1


def test_a_short_document_has_no_held_out_span() -> None:
    assert place_spans(41, 56, [], 5, torch.Generator()) == []
    assert place_spans(41, 100, [Span(40, 100)], 5, torch.Generator()) == []


@pytest.mark.parametrize(
    "on", [OnDocument(), OnSpans(ntp_on="document")], ids=["document", "spans"]
)
def test_held_out_tokens_are_in_no_loss_and_in_no_rollout(
    model: CausalLM, tokens: Tokens, on: OnDocument | OnSpans
) -> None:
    settings = config(on=on, rollouts={"positions": 3})
    fast = model.new_fast_weights("fast_weights", 8, 0)
    document = Rows(model, tokens(1, 300), fast, context_tokens=10, positions=3)
    run = prepared(document, settings)
    held = {at for span in document.held_out for at in range(*span)}
    assert len(held) == len(document.held_out) * SPAN_TOKENS > 0

    stats = document.token_stats(document.base_trunk.hidden, fast)
    learned = [at for at in range(10, 300) if at not in held]
    mean = -stats.log_prob[0, [at - 10 for at in learned]].mean()
    assert float(stats.ntp_loss) == pytest.approx(float(mean), rel=1e-12)

    starts = document.rollout_starts(torch.arange(290)[None], 5)[0]
    assert not held & {int(start) + i for start in starts for i in range(5)}
    if on.kind == "spans":
        rows = {tuple(row) for row in run.inputs.rollout_rows.input_ids.tolist()}
        ids = document.input_ids[0].tolist()
        adapted_on = [at for at in range(290) if tuple(ids[at : at + 32]) in rows]
        assert len(adapted_on) == 3
        assert not held & {at + i for at in adapted_on for i in range(32)}


# -- evaluation ----------------------------------------------------------------------------------


def test_an_evaluation_equals_reading_the_document_and_its_cues_again(
    model: CausalLM, tokens: Tokens, perturbed: Perturbed
) -> None:
    fast = perturbed(model, "low_rank")
    document = Rows(model, tokens(1, 300), fast)
    evaluator = evaluator_of(document, fast)
    run_pieces(evaluator.evaluate(0))

    ids = document.input_ids
    log_prob = model(ids, None, fast).logits[0].log_softmax(-1)
    losses: list[Tensor] = []
    right: list[bool] = []
    for start, end in document.held_out:
        losses += [-log_prob[at - 1, ids[0, at]] for at in range(start, end)]
        again = torch.cat([ids, ids[:, start - SPAN_TOKENS : end]], dim=1)
        greedy = model(again, None, fast).logits[0].argmax(-1)
        right += (greedy[-SPAN_TOKENS - 1 : -1] == again[0, -SPAN_TOKENS:]).tolist()
    [result] = evaluator.results
    assert result.loss == pytest.approx(float(sum(losses)) / len(losses), rel=1e-9)
    assert result.accuracy == pytest.approx(sum(right) / len(right))


def test_evaluations_in_a_batch_are_those_made_alone(model: CausalLM, tokens: Tokens) -> None:
    """Documents have 3, 2 and 3 spans, so that rows and tokens are padded."""

    def three() -> list[tuple[AdaptationRun, HeldOutEvaluator]]:
        pairs = []
        for seed, ids in enumerate((tokens(1, 331), tokens(1, 270), tokens(1, 317))):
            settings = config(fast_weights={"targets": "low_rank"}, seed=seed)
            fast = model.new_fast_weights("low_rank", 8, seed)
            document = Rows(model, ids, fast, positions=settings.rollouts.positions)
            run = prepared(document, settings)
            assert run.evaluator is not None
            pairs.append((run, run.evaluator))
        return pairs

    alone, together = three(), three()
    assert [evaluator.probe_ids.shape[0] for _, evaluator in alone] == [3, 2, 3]
    for number in (1, 2, 3):
        for run, _ in alone:
            step_alone(run, number)
        AdaptStep.run_batch([AdaptStep(run, number) for run, _ in together])
    for (_, lone), (_, batched) in zip(alone, together, strict=True):
        assert [result.step for result in batched.results] == [0, 1, 2]
        assert batched.results[0].loss != batched.results[2].loss
        for expected, result in zip(lone.results, batched.results, strict=True):
            assert result.loss == pytest.approx(expected.loss, abs=1e-10)
            assert result.accuracy == expected.accuracy


def test_one_step_is_evaluated_once(model: CausalLM, tokens: Tokens) -> None:
    """A step whose batch failed is tried again alone."""
    fast = model.new_fast_weights("low_rank", 8, 0)
    evaluator = evaluator_of(Rows(model, tokens(1, 200), fast), fast)
    for _ in range(2):
        run_pieces(evaluator.evaluate(0))
    assert [result.step for result in evaluator.results] == [0]


def test_a_lower_loss_alone_is_not_better(model: CausalLM, tokens: Tokens) -> None:
    """Of the weights whose reward is at least the base's, those of the lowest loss are kept."""
    fast = model.new_fast_weights("low_rank", 8, 0)
    evaluator = evaluator_of(Rows(model, tokens(1, 200), fast), fast)
    results = [(2.0, 0.5), (1.0, 0.4), (1.5, 0.5), (1.4, 0.9), (1.6, 1.0)]
    for step, (loss, reward) in enumerate(results):
        for tensor in fast.parameters():
            tensor.fill_(step)
        evaluator.record(EvalResult(step=step, loss=loss, accuracy=reward))
    assert evaluator.restore_best() == 3
    assert all(bool((tensor == 3).all()) for tensor in fast.parameters())


@pytest.mark.parametrize(
    ("steps", "due"), [(3, [0, 1, 2]), (8, [*range(8)]), (20, [*range(0, 20, 3)])]
)
def test_no_more_than_eight_evaluations_are_due(
    model: CausalLM, tokens: Tokens, steps: int, due: list[int]
) -> None:
    fast = model.new_fast_weights("low_rank", 8, 0)
    document = evaluator_of(Rows(model, tokens(1, 200), fast), fast).document
    evaluator = HeldOutEvaluator(document, fast, steps)
    assert [made for made in range(steps) if evaluator.is_due(made)] == due
    assert len(due) <= held_out.MAX_EVALUATIONS


# -- the result of an adaptation -----------------------------------------------------------------


def test_what_can_be_learned_is_accepted(model: CausalLM, tokens: Tokens) -> None:
    adapted, document = adapted_to(
        model, repeating(tokens, 40, 400), config(optimizer={"steps": 6})
    )
    report = adapted.report
    assert report.kept_base_reason is None
    assert report.accepted_step > 0
    base, *others = report.held_out
    best = next(result for result in others if result.step == report.accepted_step)
    better = [result.loss for result in report.held_out if result.accuracy >= base.accuracy]
    assert base.step == 0
    assert best.loss == min(better) < base.loss
    trunk = document.trunk(adapted.fast_weights)
    loss = document.token_stats(trunk.hidden, adapted.fast_weights).ntp_loss
    assert report.final_ntp_loss == pytest.approx(float(loss), rel=1e-9)


def test_the_best_step_is_kept(model: CausalLM, tokens: Tokens) -> None:
    """The accident comes after the second step, before its evaluation."""
    adapted, _ = adapted_to(
        model, repeating(tokens, 40, 400), config(optimizer={"steps": 4}), accident=ruin
    )
    report = adapted.report
    assert [result.step for result in report.held_out] == [0, 1, 2, 3, 4]
    assert report.accepted_step == 1
    assert report.final_ntp_loss == report.steps[1].ntp_loss
    assert not adapted.fast_weights.is_base


def test_steps_end_three_evaluations_after_the_best(model: CausalLM, tokens: Tokens) -> None:
    adapted, document = adapted_to(
        model, repeating(tokens, 40, 400), config(optimizer={"steps": 8}), accident=ruin
    )
    report = adapted.report
    assert report.accepted_step == 1
    assert [result.step for result in report.held_out] == [0, 1, 2, 3, 4]
    assert len(report.steps) == 4
    assert report.stopped == guard.NO_IMPROVEMENT
    assert report.kept_base_reason is None
    trunk = document.trunk(adapted.fast_weights)
    assert torch.equal(adapted.hidden, trunk.hidden[:, -1])
    assert report.final_ntp_loss == report.steps[1].ntp_loss


@pytest.mark.parametrize("on", [OnDocument(), OnSpans()], ids=["document", "spans"])
def test_what_cannot_be_learned_is_answered_from_the_base(
    model: CausalLM, tokens: Tokens, on: OnDocument | OnSpans
) -> None:
    """The tokens are random, and the steps are too large to learn even their distribution."""
    ids = tokens(1, 300)
    adapted, _ = adapted_to(
        model, ids, config(optimizer={"steps": 10, "learning_rate": 0.5}, on=on)
    )
    report = adapted.report
    assert [result.step for result in report.held_out] == [0, 2, 4, 6]
    assert len(report.steps) == 6
    assert report.stopped == guard.NO_IMPROVEMENT
    assert report.kept_base_reason == guard.NO_BETTER_STEP
    assert report.final_ntp_loss == report.first_ntp_loss
    assert report.accepted_step == report.fast_weight_bytes == 0
    assert adapted.fast_weights.is_base
    assert torch.equal(adapted.hidden, model(ids).hidden[:, -1])


def test_a_document_too_short_to_be_evaluated_on_is_answered_from_the_base(
    model: CausalLM, tokens: Tokens
) -> None:
    adapted, _ = adapted_to(model, tokens(1, SHORTEST - 1), config())
    assert adapted.report.kept_base_reason == guard.DOCUMENT_TOO_SHORT
    assert adapted.fast_weights.is_base


def test_the_shortest_document_that_can_be_adapted_to_is_as_the_documentation_says(
    model: CausalLM, tokens: Tokens
) -> None:
    adapted, _ = adapted_to(model, tokens(1, SHORTEST), config())
    assert adapted.report.steps
    readme = (Path(__file__).parents[3] / "README.md").read_text()
    assert f"{SHORTEST} tokens" in readme
