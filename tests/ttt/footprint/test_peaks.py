"""Bytes that are alive are counted, and predictions are those of the work itself."""

import gc

import pytest
import torch

from refine_server.server.engine.backend.model_backend import ModelBackend
from refine_server.server.settings import Settings
from refine_server.ttt.batching import stream
from refine_server.ttt.footprint.estimate import MARGIN
from refine_server.ttt.footprint.live_bytes import LiveBytes
from refine_server.ttt.footprint.peaks import Growth, adaptation_peak, state_growth
from refine_server.ttt.interface.config import AdaptConfig, SamplingConfig
from refine_server.ttt.interface.events import never_stop
from refine_server.ttt.interface.requests import AnswerRequest
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
    recomputed = 10_000 * (peak.activations - peak.traces)
    assert unlimited - limited == pytest.approx(recomputed - 10**6)
    assert peak.at(10_000, None, steps=100) < unlimited


@pytest.mark.parametrize("budget", [None, 40_000_000], ids=["unlimited", "limited"])
def test_what_an_answer_is_told_to_take_is_what_it_takes(budget: int | None) -> None:
    """Within 20 %, beside what malloc cannot use; the budget is a fourth of what steps keep."""
    backend = ModelBackend(Settings())
    document = "The keeper writes the weather into a blue book every evening. " * 40
    adapt = AdaptConfig.model_validate({"optimizer": {"steps": 1}, "guard": "none"})
    sampling = SamplingConfig(max_tokens=2, ignore_eos=True)
    request = AnswerRequest(document=document, query="Who?", adapt=adapt, sampling=sampling)
    encoded = backend.encode(request)
    backend.request_bytes(encoded)  # the model is measured once, without a limit
    backend.model.activation_budget = budget
    with LiveBytes(backend.model.parameters()) as live:
        for _ in stream(lambda emit: backend.start(encoded, emit, never_stop)):
            pass
    assert backend.request_bytes(encoded) / MARGIN == pytest.approx(live.peak, rel=0.2)
