"""The guard judges a copy on what the copy was not stepped on."""

from itertools import pairwise

import pytest
import torch
from torch import Tensor

from refine_server.ttt.batching import run as drive
from refine_server.ttt.interface.config import AdaptConfig
from refine_server.ttt.interface.reports import Judgement, StepReport
from refine_server.ttt.refine import held_out
from refine_server.ttt.refine.loop import Adapted, AdaptStep, Loop, adapt
from refine_server.ttt.refine.naive import naive_gradient
from refine_server.ttt.refine.rows import Reading


@pytest.fixture(params=["delta_net", "overlay"])
def model(request, families):
    return families[request.param](torch.float64)


def config(**changes) -> AdaptConfig:
    defaults = {"chunks": 4, "rollouts": 2, "steps": 3, "targets": "all", "learning_rate": 3e-3}
    return AdaptConfig(**(defaults | changes))


def run(model, ids: Tensor, settings: AdaptConfig, accident=None) -> tuple[Adapted, Reading]:
    """Adapt; ``accident`` is called with the fast weights after the second step."""
    fast = model.new_fast_weights(settings.targets, 8, 0)
    document = Reading(model, ids, fast, positions=settings.chunks)

    def on_step(report: StepReport) -> None:
        if accident is not None and report.step == 2:
            accident(fast)

    return drive(adapt(model, document, fast, settings, on_step=on_step)), document


def repeating(tokens, period: int, length: int) -> Tensor:
    """A text whose held-out parts can be learned from the rest."""
    return tokens(1, period).repeat(1, -(-length // period))[:, :length]


def ruin(fast) -> None:
    for tensor in fast.parameters():
        tensor.data *= 50.0


@pytest.mark.parametrize("taken", [[], [(60, 92), (128, 256), (300, 301)]])
@pytest.mark.parametrize("last", [57, 130, 257, 511])
def test_held_out_spans_are_where_they_may_be(taken, last) -> None:
    spans = held_out.hold_out(41, last, taken, 5, torch.Generator().manual_seed(0))
    assert spans == held_out.hold_out(41, last, taken, 5, torch.Generator().manual_seed(0))
    starts = [start for start, _ in spans]
    assert all(end - start == held_out.SPAN for start, end in spans)
    assert all(start >= 41 and end <= last for start, end in spans)
    assert all(b - a >= held_out.SPAN + 5 for a, b in pairwise(starts))
    assert all(end <= a or b <= start for start, end in spans for a, b in taken)
    blocks = -(-(last - 41) // held_out.BLOCK)
    assert len(spans) <= blocks
    assert taken or len(spans) >= blocks - 1


def test_a_document_without_room_has_no_held_out_span() -> None:
    assert held_out.hold_out(41, 56, [], 5, torch.Generator()) == []
    assert held_out.hold_out(41, 100, [(40, 100)], 5, torch.Generator()) == []


@pytest.mark.parametrize("prefix", ["full", "local"])
def test_held_out_tokens_are_in_no_loss_and_in_no_rollout(model, tokens, prefix) -> None:
    settings = config(prefix=prefix, ntp_on="document", chunks=3)
    fast = model.new_fast_weights("fast_weights", 8, 0)
    document = Reading(model, tokens(1, 300), fast, first=10, positions=3)
    loop = Loop(model, document, fast, settings)
    held = {at for span in document.held_out for at in range(*span)}
    assert len(held) == len(document.held_out) * held_out.SPAN > 0

    stats = document.stats(document.base.hidden, fast)
    learned = [at for at in range(10, 300) if at not in held]
    mean = -stats.log_prob[0, [at - 10 for at in learned]].mean()
    assert float(stats.loss) == pytest.approx(float(mean), rel=1e-12)

    every = torch.arange(290)[None]
    starts = document.starts(every, 5)[0]
    assert not held & {int(s) + i for s in starts for i in range(5)}
    if prefix == "local":
        rows = {tuple(row) for row in loop.rollout_reading.input_ids.tolist()}
        ids = document.input_ids[0].tolist()
        stepped_on = [at for at in range(290) if tuple(ids[at : at + 32]) in rows]
        assert len(stepped_on) == 3
        assert not held & {at + i for at in stepped_on for i in range(32)}


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
@pytest.mark.parametrize("family", ["delta_net", "overlay"])
@pytest.mark.parametrize("length", [131, 333])
def test_gradient_equals_the_naive_loop(
    families, family, dtype, tolerance, tokens, perturbed, length
) -> None:
    model, settings = families[family](dtype), config(targets="fast_weights", reward="hybrid")
    fast = perturbed(model)
    document = Reading(model, tokens(1, length), fast, positions=4)
    loop = Loop(model, document, fast, settings)
    loop.loss().total.backward()
    ours = {name: fast[name].grad for name in fast}
    generator = torch.Generator().manual_seed(settings.seed)
    naive, _ = naive_gradient(model, document, fast, settings, generator)
    difference = sum((ours[n] - naive[n]).square().sum() for n in naive)
    total = sum(g.square().sum() for g in naive.values())
    assert float((difference / total).sqrt()) <= tolerance


def test_judging_equals_reading_the_document_and_its_cues_again(model, tokens, perturbed) -> None:
    fast = perturbed(model, "low_rank")
    document = Reading(model, tokens(1, 300), fast)
    document.hold_out([], 5, 0)
    judge = held_out.Judge(model, document.input_ids, document.held_out, fast)
    trunk = document.trunk(fast)
    judge.see(0, trunk.hidden, trunk.state)

    ids = document.input_ids
    log_prob = model(ids, None, fast).logits[0].log_softmax(-1)
    losses, right = [], []
    for start, end in document.held_out:
        losses += [-log_prob[at - 1, ids[0, at]] for at in range(start, end)]
        again = torch.cat([ids, ids[:, start - held_out.SPAN : end]], dim=1)
        said = model(again, None, fast).logits[0].argmax(-1)
        right += (said[-held_out.SPAN - 1 : -1] == again[0, -held_out.SPAN :]).tolist()
    assert judge.judgements[0].loss == pytest.approx(float(sum(losses)) / len(losses), rel=1e-9)
    assert judge.judgements[0].reward == pytest.approx(sum(right) / len(right))


def test_guards_judge_in_company_as_alone(model, tokens) -> None:
    """Documents with 3, 2 and 3 spans: rows and tokens of the others are filled up."""

    def three() -> list[Loop]:
        loops = []
        for seed, ids in enumerate(documents):
            settings = config(targets="low_rank", seed=seed)
            fast = model.new_fast_weights("low_rank", 8, seed)
            document = Reading(model, ids, fast, positions=settings.chunks)
            loops.append(Loop(model, document, fast, settings))
        return loops

    documents = [tokens(1, 331), tokens(1, 270), tokens(1, 317)]
    alone, together = three(), three()
    assert [loop.judge.probe_ids.shape[0] for loop in alone] == [3, 2, 3]
    for number in (1, 2, 3):
        for loop in alone:
            loop.step(number)
        AdaptStep.run_batch([AdaptStep(loop, number) for loop in together])
    for a, b in zip(alone, together, strict=True):
        assert [j.step for j in b.judge.judgements] == [0, 1, 2]
        assert b.judge.judgements[0].loss != b.judge.judgements[2].loss
        for x, y in zip(a.judge.judgements, b.judge.judgements, strict=True):
            assert y.loss == pytest.approx(x.loss, abs=1e-10)
            assert y.reward == x.reward


def test_what_can_be_learned_is_accepted(model, tokens) -> None:
    adapted, document = run(model, repeating(tokens, 40, 400), config(steps=6))
    report = adapted.report
    assert report.guard is None
    assert report.accepted_step > 0
    base, *others = report.held_out
    best = next(j for j in others if j.step == report.accepted_step)
    assert base.step == 0
    assert best.loss == min(j.loss for j in report.held_out if j.reward >= base.reward) < base.loss
    read = document.stats(document.trunk(adapted.fast_weights).hidden, adapted.fast_weights)
    assert report.final_ntp_loss == pytest.approx(float(read.loss), rel=1e-9)


def test_the_best_step_is_kept(model, tokens) -> None:
    adapted, _ = run(model, repeating(tokens, 40, 400), config(steps=4), accident=ruin)
    report = adapted.report
    assert [j.step for j in report.held_out] == [0, 1, 2, 3, 4]
    assert report.accepted_step == 1  # the accident came after the second step, before its judging
    assert report.final_ntp_loss == report.steps[1].ntp_loss
    assert adapted.fast_weights


@pytest.mark.parametrize("prefix", ["full", "local"])
def test_what_cannot_be_learned_is_answered_from_the_base(model, tokens, prefix) -> None:
    """Tokens without any order, and steps too large for even their mean to be learned."""
    ids = tokens(1, 300)
    adapted, _ = run(model, ids, config(steps=10, learning_rate=0.5, prefix=prefix))
    report = adapted.report
    assert [j.step for j in report.held_out] == [0, 2, 4, 6]
    assert len(report.steps) == 6
    assert report.stopped == held_out.NO_IMPROVEMENT
    assert report.guard == held_out.KEPT_BASE
    assert report.final_ntp_loss == report.first_ntp_loss
    assert report.accepted_step == report.fast_weight_bytes == 0
    assert not adapted.fast_weights
    assert torch.equal(adapted.hidden, model(ids).hidden[:, -1])


def test_steps_end_three_judgements_after_the_best(model, tokens) -> None:
    adapted, document = run(model, repeating(tokens, 40, 400), config(steps=8), accident=ruin)
    report = adapted.report
    assert report.accepted_step == 1
    assert [j.step for j in report.held_out] == [0, 1, 2, 3, 4]
    assert len(report.steps) == 4
    assert report.stopped == held_out.NO_IMPROVEMENT
    assert report.guard is None
    read = document.trunk(adapted.fast_weights)
    assert torch.equal(adapted.hidden, read.hidden[:, -1])
    assert report.final_ntp_loss == report.steps[1].ntp_loss


def test_who_is_out_of_patience_leaves_a_batch_as_it_was(model, tokens) -> None:
    """The others' gradients are theirs alone, and the weights of who leaves are not touched."""

    def two() -> list[Loop]:
        loops = []
        for seed in range(2):
            settings = config(targets="low_rank", seed=seed)
            fast = model.new_fast_weights("low_rank", 8, seed)
            document = Reading(model, ids[seed], fast, positions=settings.chunks)
            loops.append(Loop(model, document, fast, settings))
        loops[0].judge._since_kept = held_out.PATIENCE
        return loops

    ids = [tokens(1, 200), tokens(1, 200)]
    alone, together = two(), two()
    before = [t.clone() for t in together[0].fast.parameters()]
    expected = [loop.step(1) for loop in alone]
    outcomes = AdaptStep.run_batch([AdaptStep(loop, 1) for loop in together])
    assert outcomes[0] == expected[0] == (None, held_out.NO_IMPROVEMENT)
    assert all(map(torch.equal, before, together[0].fast.parameters()))
    assert outcomes[1].report.loss == pytest.approx(expected[1].report.loss, abs=1e-10)
    for a, b in zip(alone[1].fast.parameters(), together[1].fast.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-9, rtol=0)


def test_a_step_is_judged_once(model, tokens) -> None:
    fast = model.new_fast_weights("low_rank", 8, 0)
    document = Reading(model, tokens(1, 200), fast)
    document.hold_out([], 5, 0)
    judge = held_out.Judge(model, document.input_ids, document.held_out, fast)
    for _ in range(2):
        judge.see(0, document.base.hidden, document.base.state)
    assert [j.step for j in judge.judgements] == [0]


def test_a_lower_loss_is_not_enough(model, tokens) -> None:
    fast = model.new_fast_weights("low_rank", 8, 0)
    document = Reading(model, tokens(1, 200), fast)
    document.hold_out([], 5, 0)
    judge = held_out.Judge(model, document.input_ids, document.held_out, fast)
    judged = [(2.0, 0.5), (1.0, 0.4), (1.5, 0.5), (1.4, 0.9), (1.6, 1.0)]
    for step, (loss, reward) in enumerate(judged):
        for tensor in fast.parameters():
            tensor.fill_(step)
        judge.note(Judgement(step, loss, reward))
    assert judge.restore() == 3
    assert all(bool((t == 3).all()) for t in fast.parameters())


def test_a_document_too_short_to_be_judged_is_answered_from_the_base(model, tokens) -> None:
    settings = config()
    fast = model.new_fast_weights("fast_weights", 8, 0)
    adapted = drive(adapt(model, Reading(model, tokens(1, 50), fast), fast, settings))
    assert adapted.report.guard == held_out.DOCUMENT_TOO_SHORT
