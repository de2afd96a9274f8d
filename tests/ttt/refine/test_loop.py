"""The loop: its gradient is that of re-reading prefixes, and it changes nothing but the copy."""

import hashlib

import pytest
import torch

from refine_server.ttt.batching import resume, run, run_batch
from refine_server.ttt.interface.config import AdaptConfig
from refine_server.ttt.refine import held_out
from refine_server.ttt.refine.loop import Adapted, Loop, adapt
from refine_server.ttt.refine.naive import naive_gradient
from refine_server.ttt.refine.rows import Asked, Reading, answer_reading

TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5}
DTYPES = pytest.mark.parametrize("dtype", TOLERANCE, ids=["fp64", "fp32"])


@pytest.fixture(params=["delta_net", "lact", "overlay"])
def model_in(request, families):
    """The loop's own tests: one family of each kind of state, not all of them."""
    return families[request.param]


@pytest.fixture
def model(model_in):
    return model_in(torch.float64)


def config(**changes) -> AdaptConfig:
    defaults = {
        "prefix": "full",
        "chunks": 4,
        "rollouts": 3,
        "rollout_tokens": 5,
        "reward": "hybrid",
        "steps": 3,
        "guard": "none",
    }
    return AdaptConfig(**(defaults | changes))


def base_hash(model) -> str:
    digest = hashlib.sha256()
    for name, parameter in sorted(model.named_parameters()):
        digest.update(name.encode())
        digest.update(parameter.detach().contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def relative_error(loop: Loop, rows: Reading, fast, settings: AdaptConfig) -> float:
    loop.loss().total.backward()
    ours = {n: torch.zeros_like(fast[n]) if fast[n].grad is None else fast[n].grad for n in fast}
    generator = torch.Generator().manual_seed(settings.seed)
    naive, _ = naive_gradient(loop.model, rows, fast, settings, generator)
    difference = sum((ours[n] - naive[n]).square().sum() for n in naive)
    return float((difference / sum(g.square().sum() for g in naive.values())).sqrt())


GRADIENTS = [  # dtype, targets, length
    (torch.float64, "fast_weights", 131),
    (torch.float64, "low_rank", 131),
    (torch.float64, "all", 131),
    (torch.float32, "fast_weights", 131),
]


@pytest.mark.parametrize(("dtype", "targets", "length"), GRADIENTS)
def test_gradient_equals_the_naive_loop(
    make_model, dtype, tokens, perturbed, length, targets
) -> None:
    """For every family, whatever a request may own.

    Hot rollouts differ: where a group's rewards are nearly equal, an advantage is their rounding
    divided by their spread.
    """
    model, settings = make_model(dtype), config(targets=targets, rollout_temperature=4.0)
    fast = perturbed(model, targets)
    document = Reading(model, tokens(1, length), fast, positions=4)
    loop = Loop(model, document, fast, settings)
    assert relative_error(loop, document, fast, settings) <= TOLERANCE[dtype]


@DTYPES
@pytest.mark.parametrize("length", [192, 333])
@pytest.mark.parametrize("targets", ["fast_weights", "all"])
@pytest.mark.parametrize("family", ["delta_net", "overlay"])
def test_gradient_equals_the_naive_loop_on_longer_documents(
    families, family, dtype, tokens, perturbed, length, targets
) -> None:
    model, settings = families[family](dtype), config(targets=targets)
    fast = perturbed(model, targets)
    document = Reading(model, tokens(1, length), fast, positions=4)
    loop = Loop(model, document, fast, settings)
    assert relative_error(loop, document, fast, settings) <= TOLERANCE[dtype]


@pytest.mark.parametrize("start", [63, 64, 65, 127, 128, 145])
def test_gradient_is_exact_at_kernel_chunk_edges(
    model, tokens, perturbed, start, monkeypatch
) -> None:
    settings, fast = config(chunks=1), perturbed(model)
    document = Reading(model, tokens(1, 150), fast)
    at = torch.tensor([[start]])
    monkeypatch.setattr(document, "starts", lambda index, k: at)
    loop = Loop(model, document, fast, settings)
    assert relative_error(loop, document, fast, settings) <= 1e-10


def test_one_rollout_a_position_groups_by_document(model, tokens, perturbed) -> None:
    settings, fast = config(rollouts=1, reward="cosine"), perturbed(model)
    document = Reading(model, tokens(1, 131), fast, positions=4)
    loop = Loop(model, document, fast, settings)
    assert relative_error(loop, document, fast, settings) <= 1e-10


def test_a_header_is_context_only(model, tokens, perturbed) -> None:
    settings, fast = config(), perturbed(model)
    document = Reading(model, tokens(1, 131), fast, first=30, positions=4)
    loop = Loop(model, document, fast, settings)
    assert document.starts(torch.tensor([[0, 100]]), 5).tolist() == [[30, 126]]
    assert loop.loss().entropy.shape == (1, 101)


@DTYPES
@pytest.mark.parametrize("in_context", [False, True])
def test_gradient_equals_the_naive_loop_on_spans_as_an_answer(
    model_in, dtype, tokens, perturbed, in_context
) -> None:
    model, settings = model_in(dtype), config()
    fast = perturbed(model)
    document = Reading(model, tokens(1, 131), fast, positions=4)
    header, query = tokens(1, 23, seed=1)[0].split([9, 14])
    asked = Asked("?", header.tolist(), query.tolist())
    rows = answer_reading(document, [(3, 22), (90, 107)], fast, asked, in_context)
    text = document.input_ids[0]
    prompt = torch.cat([text if in_context else header, query])
    assert rows.input_ids[0].tolist() == torch.cat([prompt, text[3:22], text[90:107]]).tolist()
    first = len(prompt)
    assert rows.starts(torch.tensor([[0, 35]]), 5).tolist() == [[first, first + 31]]
    loop = Loop(model, rows, fast, settings)
    assert relative_error(loop, rows, fast, settings) <= TOLERANCE[dtype]


@pytest.mark.parametrize("objective", ["refine", "ntp"])
@pytest.mark.parametrize("prefix", ["full", "local"])
@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_adaptation_lowers_the_loss_it_reads(model, tokens, objective, prefix, optimizer) -> None:
    rate = 1e-2 if optimizer == "adamw" else 0.5
    settings = config(
        objective=objective, prefix=prefix, optimizer=optimizer, learning_rate=rate, steps=6
    )
    fast = model.new_fast_weights("fast_weights", 8, 0)
    adapted = run(adapt(model, Reading(model, tokens(1, 200), fast, positions=4), fast, settings))
    report = adapted.report
    assert report.accepted_step == len(report.steps) == 6
    assert report.final_ntp_loss < report.first_ntp_loss
    assert all(step.rollout_tokens == (0 if objective == "ntp" else 60) for step in report.steps)


@pytest.mark.parametrize(
    ("selection", "reward"),
    [
        ("entropy", "exact"),
        ("surprise", "cosine"),
        ("uniform", "hybrid"),
        ("argmax", "exact"),
        ("argmin", "cosine"),
    ],
)
@pytest.mark.parametrize("prefix", ["full", "local"])
def test_every_variant_is_deterministic(model, tokens, selection, reward, prefix) -> None:
    settings = config(selection=selection, reward=reward, prefix=prefix, steps=2, kl_coef=0.1)

    def once() -> Adapted:
        fast = model.new_fast_weights("fast_weights", 8, 0)
        return run(adapt(model, Reading(model, tokens(1, 90), fast, positions=4), fast, settings))

    first, second = once(), once()
    for name in first.fast_weights:
        assert torch.equal(first.fast_weights[name], second.fast_weights[name])
    assert torch.equal(first.hidden, second.hidden)


def test_kl_starts_at_zero_and_grows(model, tokens) -> None:
    fast = model.new_fast_weights("fast_weights", 8, 0)
    settings = config(kl_coef=0.1, learning_rate=0.05)
    report = run(
        adapt(model, Reading(model, tokens(1, 90), fast, positions=4), fast, settings)
    ).report
    assert report.steps[0].kl == pytest.approx(0.0, abs=1e-9)
    assert report.steps[-1].kl > 1e-6


@pytest.mark.parametrize("targets", ["fast_weights", "low_rank", "all"])
def test_adapting_never_touches_the_base_weights(model, tokens, targets) -> None:
    before = base_hash(model)
    fast = model.new_fast_weights(targets, 8, 0)
    run(adapt(model, Reading(model, tokens(1, 90), fast, positions=4), fast, config()))
    cancelled = adapt(model, Reading(model, tokens(1, 90), fast, positions=4), fast, config())
    [prepared] = run_batch([resume(cancelled)])
    run_batch([resume(cancelled, prepared)])  # one step
    cancelled.close()
    assert base_hash(model) == before


def poison(model, fast) -> None:
    fast[next(iter(fast))].fill_(float("nan"))


def test_non_finite_loss_falls_back_to_the_base(model, tokens) -> None:
    ids, fast = tokens(1, 90), model.new_fast_weights("fast_weights", 8, 0)
    poison(model, fast)
    adapted = run(adapt(model, Reading(model, ids, fast, positions=4), fast, config()))
    assert adapted.report.guard == held_out.NON_FINITE_LOSS
    assert not adapted.report.adapted
    assert len(adapted.report.steps) == 1
    assert torch.equal(adapted.hidden, model(ids).hidden[:, -1])


def test_non_finite_gradient_falls_back_to_the_base(model, tokens) -> None:
    fast = model.new_fast_weights("fast_weights", 8, 0).requires_grad_()
    fast.parameters()[0].register_hook(lambda grad: grad * float("inf"))
    adapted = run(adapt(model, Reading(model, tokens(1, 90), fast), fast, config()))
    assert adapted.report.guard == held_out.NON_FINITE_GRADIENT
    assert not adapted.fast_weights


def test_time_budget_stops_at_a_step_boundary(model, tokens) -> None:
    fast = model.new_fast_weights("fast_weights", 8, 0)
    settings = config(max_seconds=1e-9, steps=5)
    report = run(
        adapt(model, Reading(model, tokens(1, 90), fast, positions=4), fast, settings)
    ).report
    assert (len(report.steps), report.accepted_step, report.stopped) == (1, 1, "max_seconds")


@pytest.mark.parametrize("length", [2, 5, 9])
def test_a_document_without_room_for_a_rollout_is_answered_from_the_base(
    model, tokens, length
) -> None:
    fast = model.new_fast_weights("fast_weights", 8, 0)
    report = run(adapt(model, Reading(model, tokens(1, length), fast), fast, config())).report
    assert report.guard == held_out.DOCUMENT_TOO_SHORT
    assert not report.adapted


@pytest.mark.parametrize("length", [11, 12, 23, 40])
@pytest.mark.parametrize("prefix", ["full", "local"])
def test_short_documents_still_adapt(model, tokens, length, prefix) -> None:
    fast = model.new_fast_weights("fast_weights", 8, 0)
    document = Reading(model, tokens(1, length), fast, positions=8)
    report = run(adapt(model, document, fast, config(prefix=prefix, chunks=8))).report
    assert len(report.steps) == 3
