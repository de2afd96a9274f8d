"""Bytes that are alive are counted, and predictions are those of the work itself."""

import gc

import pytest
import torch

from refine_server.ttt.footprint.live_bytes import LiveBytes
from refine_server.ttt.footprint.peaks import Growth, adaptation_peak, state_growth
from refine_server.ttt.interface.config import AdaptConfig
from refine_server.ttt.refine.inputs.rows import Rows
from refine_server.ttt.refine.step import AdaptationRun, AdaptStep
from support.small_models import Families, Tokens


def test_what_was_freed_is_not_alive() -> None:
    known = torch.zeros(100)
    with LiveBytes([known]) as live:
        first = torch.ones(250)
        view = first[10:]
        del first
        assert live.alive == 1000
        second = known + 1
        del view
        gc.collect()
        assert live.alive == second.nbytes
    assert live.peak == 1400


def test_growth_is_a_line_through_two_lengths() -> None:
    growth = Growth.of((100, 200), (1500, 2500))
    assert (growth.per_token, growth.fixed) == (10.0, 500.0)
    assert growth.at(1000) == 10_500


@pytest.mark.parametrize("family", ["delta_net", "overlay"])
def test_the_state_that_is_predicted_is_what_a_document_takes(
    families: Families, tokens: Tokens, family: str
) -> None:
    model = families[family](torch.float32)
    with torch.no_grad():
        state = model(tokens(1, 700)).state
    assert state_growth(model).at(700) == pytest.approx(state.nbytes, rel=0.8)


@pytest.mark.parametrize("family", ["delta_net", "overlay"])
def test_the_peak_of_a_longer_document_is_predicted(
    families: Families, tokens: Tokens, family: str
) -> None:
    model, config = families[family](torch.float32), AdaptConfig(guard="none")
    ids = tokens(1, 900)
    with LiveBytes(model.parameters()) as live:
        fast = model.new_fast_weights("low_rank", 8, 0)
        rows = Rows(model, ids, fast, positions=2)
        AdaptStep.run_batch([AdaptStep(AdaptationRun.of(rows, fast, config), 1)])
    predicted = adaptation_peak(model, config, (520, 700)).at(900, None)
    assert predicted == pytest.approx(live.peak, rel=0.2)


def test_a_budget_bounds_what_waits_for_the_backward_pass(families: Families) -> None:
    peak = adaptation_peak(families["overlay"](torch.float32), AdaptConfig())
    unlimited, limited = peak.at(10_000, None), peak.at(10_000, 10**6)
    assert unlimited - limited == pytest.approx(10_000 * peak.activations - 10**6)
    assert peak.at(10_000, None, steps=100) < unlimited
