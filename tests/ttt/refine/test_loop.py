"""An adaptation lowers the loss that it reads, reports its end, and changes only the copy."""

import pytest
import torch
from torch import Tensor

from refine_server.ttt.batching import resume, run, run_batch
from refine_server.ttt.document import AdaptedDocument
from refine_server.ttt.fast_weights import FastWeights
from refine_server.ttt.interface.config import AdaptConfig, OnDocument, OnSpans, Selection
from refine_server.ttt.interface.reports import StepReport
from refine_server.ttt.models import CausalLM
from refine_server.ttt.refine import guard
from refine_server.ttt.refine.inputs.rows import Rows
from refine_server.ttt.refine.loop import adapt
from support.small_models import Families, Tokens


@pytest.fixture(params=["delta_net", "lact", "overlay"])
def model(request: pytest.FixtureRequest, families: Families) -> CausalLM:
    """One family of each kind of state, not all of them."""
    return families[request.param](torch.float64)


def config(**changes: object) -> AdaptConfig:
    defaults = {
        "rollouts": {"positions": 4, "per_position": 3, "reward": "hybrid"},
        "optimizer": {"steps": 3},
        "guard": "none",
    }
    return AdaptConfig(**defaults).updated(**changes)


def document_of(model: CausalLM, ids: Tensor, settings: AdaptConfig) -> tuple[Rows, FastWeights]:
    fast = model.new_fast_weights(settings.fast_weights.targets, 8, 0)
    return Rows(model, ids, fast, positions=settings.rollouts.positions), fast


def adapted_to(model: CausalLM, ids: Tensor, settings: AdaptConfig) -> AdaptedDocument:
    return run(adapt(*document_of(model, ids, settings), settings))


@pytest.mark.parametrize("objective", ["refine", "ntp"])
@pytest.mark.parametrize("on", [OnDocument(), OnSpans()], ids=["document", "spans"])
def test_adaptation_lowers_the_loss_it_reads(
    model: CausalLM, tokens: Tokens, objective: str, on: OnDocument | OnSpans
) -> None:
    settings = config(
        objective=objective,
        on=on,
        optimizer={"learning_rate": 1e-2, "steps": 6},
        fast_weights={"targets": "fast_weights"},
    )
    report = adapted_to(model, tokens(1, 200), settings).report
    assert report.accepted_step == len(report.steps) == 6
    assert report.first_ntp_loss is not None
    assert report.final_ntp_loss is not None
    assert report.final_ntp_loss < report.first_ntp_loss
    rollout_tokens = 0 if objective == "ntp" else 4 * 3 * 5
    assert all(step.rollout_tokens == rollout_tokens for step in report.steps)


@pytest.mark.parametrize(
    ("select", "reward"),
    [
        ("entropy", "exact"),
        ("surprise", "cosine"),
        ("uniform", "hybrid"),
        ("argmax", "exact"),
        ("argmin", "cosine"),
    ],
)
@pytest.mark.parametrize("kind", ["document", "spans"])
def test_every_variant_is_deterministic(
    model: CausalLM, tokens: Tokens, select: Selection, reward: str, kind: str
) -> None:
    settings = config(
        on=OnSpans(choose=select) if kind == "spans" else OnDocument(),
        rollouts={"select": select, "reward": reward},
        loss={"kl": 0.1},
        optimizer={"steps": 2},
        fast_weights={"targets": "fast_weights"},
    )
    first, second = (adapted_to(model, tokens(1, 90), settings) for _ in range(2))
    for name in first.fast_weights:
        assert torch.equal(first.fast_weights[name], second.fast_weights[name])
    assert torch.equal(first.hidden, second.hidden)


def test_kl_starts_at_zero_and_grows(model: CausalLM, tokens: Tokens) -> None:
    settings = config(
        loss={"kl": 0.1},
        optimizer={"learning_rate": 0.05},
        fast_weights={"targets": "fast_weights"},
    )
    report = adapted_to(model, tokens(1, 90), settings).report
    assert report.steps[0].kl == pytest.approx(0.0, abs=1e-9)
    assert report.steps[-1].kl > 1e-6


@pytest.mark.parametrize("targets", ["fast_weights", "low_rank", "all"])
def test_adapting_never_touches_the_base_weights(
    model: CausalLM, tokens: Tokens, targets: str
) -> None:
    before, settings = model.fingerprint(), config(fast_weights={"targets": targets})
    adapted_to(model, tokens(1, 90), settings)
    cancelled = adapt(*document_of(model, tokens(1, 90), settings), settings)
    [prepared] = run_batch([resume(cancelled)])
    run_batch([resume(cancelled, prepared)])  # one step
    cancelled.close()
    assert model.fingerprint() == before


def test_an_adapted_document_continues_under_the_adapted_weights(
    model: CausalLM, tokens: Tokens
) -> None:
    ids, after, settings = (
        tokens(1, 90),
        tokens(1, 7, seed=2),
        config(fast_weights={"targets": "fast_weights"}),
    )
    document, fast = document_of(model, ids, settings)
    adapted = run(adapt(document, fast, settings, owner="a"))
    assert (adapted.owner, adapted.document_tokens) == ("a", 90)
    continued = model(after, adapted.state, adapted.fast_weights).hidden
    whole = model(torch.cat([ids, after], dim=1), None, adapted.fast_weights).hidden[:, 90:]
    torch.testing.assert_close(continued, whole)


def test_without_steps_a_document_is_that_of_the_base(model: CausalLM, tokens: Tokens) -> None:
    ids = tokens(1, 90)
    adapted = adapted_to(model, ids, config(objective="none"))
    assert adapted.fast_weights.is_base
    assert (adapted.report.steps, adapted.report.kept_base_reason) == ((), None)
    assert torch.equal(adapted.hidden, model(ids).hidden[:, -1])


def test_a_non_finite_loss_falls_back_to_the_base(model: CausalLM, tokens: Tokens) -> None:
    ids, settings = tokens(1, 90), config(fast_weights={"targets": "fast_weights"})
    document, fast = document_of(model, ids, settings)
    fast[next(iter(fast))].fill_(float("nan"))
    adapted = run(adapt(document, fast, settings))
    assert adapted.report.kept_base_reason == guard.NON_FINITE_LOSS
    assert not adapted.report.adapted
    assert len(adapted.report.steps) == 1
    assert torch.equal(adapted.hidden, model(ids).hidden[:, -1])


def test_a_non_finite_gradient_falls_back_to_the_base(model: CausalLM, tokens: Tokens) -> None:
    settings = config(fast_weights={"targets": "fast_weights"})
    document, fast = document_of(model, tokens(1, 90), settings)
    fast.requires_grad_().parameters()[0].register_hook(lambda grad: grad * float("inf"))
    adapted = run(adapt(document, fast, settings))
    assert adapted.report.kept_base_reason == guard.NON_FINITE_GRADIENT
    assert adapted.fast_weights.is_base


def test_weights_that_end_up_non_finite_are_not_used(model: CausalLM, tokens: Tokens) -> None:
    """After the last step no further loss is computed that could reveal it."""
    ids, settings = (
        tokens(1, 90),
        config(optimizer={"steps": 1}, fast_weights={"targets": "fast_weights"}),
    )
    document, fast = document_of(model, ids, settings)

    def poison(_: object) -> None:
        fast.parameters()[0].data.fill_(float("nan"))

    adapted = run(adapt(document, fast, settings, on_step=poison))
    assert adapted.report.kept_base_reason == guard.NON_FINITE_WEIGHTS
    assert (adapted.report.accepted_step, adapted.fast_weights.is_base) == (0, True)
    assert adapted.report.final_ntp_loss == adapted.report.first_ntp_loss
    assert torch.equal(adapted.hidden, model(ids).hidden[:, -1])


def test_a_time_budget_that_no_step_fits_into_leaves_the_base(
    model: CausalLM, tokens: Tokens
) -> None:
    settings = config(
        optimizer={"max_seconds": 1e-9, "steps": 5}, fast_weights={"targets": "fast_weights"}
    )
    report = adapted_to(model, tokens(1, 90), settings).report
    stopped = len(report.steps), report.accepted_step, report.stopped
    assert stopped == (0, 0, guard.MAX_SECONDS)


def test_a_caller_stops_at_a_step_boundary(model: CausalLM, tokens: Tokens) -> None:
    settings = config(optimizer={"steps": 5}, fast_weights={"targets": "fast_weights"})
    reports: list[StepReport] = []
    document, fast = document_of(model, tokens(1, 90), settings)

    def should_stop(seconds: float) -> str | None:
        return "enough" if len(reports) == 2 else None

    adapted = run(adapt(document, fast, settings, on_step=reports.append, should_stop=should_stop))
    assert (adapted.report.stopped, adapted.report.accepted_step) == ("enough", 2)
    assert tuple(reports) == adapted.report.steps


@pytest.mark.parametrize("length", [2, 5, 9])
def test_a_document_too_short_for_a_rollout_is_answered_from_the_base(
    model: CausalLM, tokens: Tokens, length: int
) -> None:
    report = adapted_to(
        model, tokens(1, length), config(fast_weights={"targets": "fast_weights"})
    ).report
    assert report.kept_base_reason == guard.DOCUMENT_TOO_SHORT
    assert not report.adapted


@pytest.mark.parametrize("length", [11, 12, 23, 40])
@pytest.mark.parametrize("on", [OnDocument(), OnSpans()], ids=["document", "spans"])
def test_short_documents_still_adapt(
    model: CausalLM, tokens: Tokens, length: int, on: OnDocument | OnSpans
) -> None:
    settings = config(rollouts={"positions": 8}, fast_weights={"targets": "fast_weights"}, on=on)
    assert len(adapted_to(model, tokens(1, length), settings).report.steps) == 3
