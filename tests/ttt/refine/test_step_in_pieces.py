"""Steps whose passes run in pieces: what they make, and what is left of one that was not ended."""

import pytest
import torch

from refine_server.ttt.batching import Batch
from refine_server.ttt.fast_weights import FastWeights
from refine_server.ttt.interface.config import AdaptConfig
from refine_server.ttt.models import CausalLM
from refine_server.ttt.refine import guard
from refine_server.ttt.refine.inputs.rows import Rows
from refine_server.ttt.refine.step import AdaptationRun, AdaptStep, StepAbandoned, StepDone
from refine_server.ttt.refine.time_limit import TimeLimit
from support.paces import FixedPace
from support.small_models import Families, Tokens
from support.steps import prepared, step_alone

CONFIG = AdaptConfig(
    rollouts={"positions": 4, "per_position": 2},
    optimizer={"steps": 3},
    fast_weights={"rank": 4},
    guard="held_out",
)


def runs(model: CausalLM, tokens: Tokens) -> list[AdaptationRun]:
    """Make runs on 201 and 190 tokens."""
    made = []
    for seed, length in enumerate((201, 190)):
        fresh = model.new_fast_weights("low_rank", 4, seed)
        generator = torch.Generator().manual_seed(seed)
        # Not zero, where AdamW would turn rounding errors into whole steps.
        noise = {
            name: 0.05 * torch.randn(t.shape, generator=generator).to(t)
            for name, t in fresh.tensors.items()
        }
        fast = FastWeights({name: t + noise[name] for name, t in fresh.tensors.items()}, "owner")
        document = Rows(model, tokens(1, length, seed=seed), fast, positions=4)
        made.append(prepared(document, CONFIG.updated(seed=seed)))
    return made


def difference(a: AdaptationRun, b: AdaptationRun) -> float:
    return max(float((a.fast[n] - b.fast[n]).detach().abs().max()) for n in a.fast)


@pytest.mark.parametrize("family", ["delta_net", "overlay"])
def test_a_batch_in_segments_makes_the_steps_of_whole_passes_alone(
    families: Families, family: str, tokens: Tokens
) -> None:
    model = families[family](torch.float64)
    alone, together = runs(model, tokens), runs(model, tokens)
    expected = [step_alone(run) for run in alone]
    model.pace = FixedPace(128)
    batch, pieces = Batch([AdaptStep(run, 1) for run in together]), 1
    while not (ended := batch.run_piece()):
        pieces += 1
    assert pieces > 15
    for (_, outcome), own, lone, batched in zip(ended, expected, alone, together, strict=True):
        assert isinstance(outcome, StepDone)
        assert isinstance(own, StepDone)
        assert outcome.report.loss == pytest.approx(own.report.loss, abs=1e-10)
        assert difference(lone, batched) <= 1e-9


class Time:
    """A clock that is set by hand."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize("pieces", [1, 8, 16])
def test_a_step_whose_time_is_over_changes_nothing_and_the_others_go_on(
    families: Families, tokens: Tokens, pieces: int
) -> None:
    model = families["overlay"](torch.float64)
    alone, together = runs(model, tokens), runs(model, tokens)
    step_alone(alone[1])
    before = [tensor.clone() for tensor in together[0].fast.parameters()]
    model.pace, clock = FixedPace(128), Time()
    limit = TimeLimit(10.0, lambda _: None, reads_again=True, clock=clock)
    late, other = AdaptStep(together[0], 1, limit), AdaptStep(together[1], 1)
    batch = Batch([late, other])
    for _ in range(pieces):
        assert batch.run_piece() == []
    clock.now = 11.0
    assert batch.run_piece() == [(late, StepAbandoned(guard.MAX_SECONDS))]
    assert all(map(torch.equal, before, together[0].fast.parameters()))
    while not (ended := batch.run_piece()):
        pass
    [(operation, outcome)] = ended
    assert operation is other
    assert isinstance(outcome, StepDone)
    assert difference(alone[1], together[1]) <= 1e-9


def test_reading_and_judging_after_the_last_step_have_their_time() -> None:
    clock = Time()
    limit = TimeLimit(10.0, lambda _: None, reads_again=True, clock=clock)
    limit.begin_reading()
    clock.now = 3.0
    assert limit.reason() is None  # as long again fits in
    limit.end_reading()
    clock.now = 6.9
    assert limit.reason() is None
    assert limit.reason(0.2) == guard.MAX_SECONDS
    clock.now = 7.1
    assert limit.reason() == guard.MAX_SECONDS


def test_reading_that_takes_more_than_half_of_the_time_is_left() -> None:
    clock = Time()
    limit = TimeLimit(10.0, lambda _: None, reads_again=True, clock=clock)
    limit.begin_reading()
    clock.now = 5.1
    assert limit.reason() == guard.MAX_SECONDS


def test_an_adaptation_that_reads_nothing_again_may_use_all_its_time() -> None:
    clock = Time()
    limit = TimeLimit(10.0, lambda _: None, reads_again=False, clock=clock)
    limit.begin_reading()
    clock.now = 9.9
    assert limit.reason() is None
    clock.now = 10.1
    assert limit.reason() == guard.MAX_SECONDS
