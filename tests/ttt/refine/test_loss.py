"""A step's loss: in every setting, its gradient equals that of the naive step."""

from collections.abc import Callable

import pytest
import torch

from refine_server.ttt.interface.config import AdaptConfig
from refine_server.ttt.refine.inputs.rows import Rows
from refine_server.ttt.refine.inputs.spans import QueryContext, answer_rows, span_rows
from refine_server.ttt.refine.inputs.step_inputs import StepInputs
from refine_server.ttt.refine.loss import StepLoss
from refine_server.ttt.refine.naive import naive_gradient
from support.small_models import Families, MakeModel, Perturbed, Tokens
from support.steps import TOLERANCE, gradient_error, loss_of, prepared

DTYPES = pytest.mark.parametrize("dtype", TOLERANCE, ids=["fp64", "fp32"])
FAMILIES = pytest.mark.parametrize("family", ["delta_net", "lact", "overlay"])
"""One family of each kind of state."""


def config(**changes: object) -> AdaptConfig:
    defaults = {
        "rollouts": {"positions": 4, "per_position": 3, "reward": "hybrid"},
        "guard": "none",
    }
    return AdaptConfig(**defaults).updated(**changes)


def with_reference(**changes: object) -> AdaptConfig:
    rollouts = {"demonstration": True, "per_position": 2, "tokens": 3, "reward": "exact"}
    settings = config(rollouts=rollouts, fast_weights={"targets": "fast_weights"})
    return settings.updated(**changes)


@pytest.mark.parametrize(
    ("dtype", "targets"),
    [
        (torch.float64, "fast_weights"),
        (torch.float64, "low_rank"),
        (torch.float64, "all"),
        (torch.float32, "fast_weights"),
    ],
)
def test_gradient_is_exact_in_every_family(
    make_model: MakeModel,
    dtype: torch.dtype,
    targets: str,
    tokens: Tokens,
    perturbed: Perturbed,
) -> None:
    """The gradient is exact for all kinds of fast weights.

    A high temperature makes rollouts differ: when rewards are nearly equal, an advantage is their
    rounding divided by their spread.
    """
    model, settings = (
        make_model(dtype),
        config(rollouts={"temperature": 4.0}, fast_weights={"targets": targets}),
    )
    fast = perturbed(model, targets)
    rows = Rows(model, tokens(1, 131), fast, positions=4)
    assert gradient_error(StepInputs.of(rows, fast, settings)) <= TOLERANCE[dtype]


@DTYPES
@pytest.mark.parametrize("length", [192, 333])
@pytest.mark.parametrize("targets", ["fast_weights", "all"])
@pytest.mark.parametrize("family", ["delta_net", "overlay"])
def test_gradient_is_exact_on_longer_documents(
    families: Families,
    family: str,
    targets: str,
    length: int,
    dtype: torch.dtype,
    tokens: Tokens,
    perturbed: Perturbed,
) -> None:
    model, settings = families[family](dtype), config(fast_weights={"targets": targets})
    fast = perturbed(model, targets)
    rows = Rows(model, tokens(1, length), fast, positions=4)
    assert gradient_error(StepInputs.of(rows, fast, settings)) <= TOLERANCE[dtype]


@FAMILIES
@pytest.mark.parametrize("start", [63, 64, 65, 127, 128, 145])
def test_gradient_is_exact_at_kernel_chunk_edges(
    families: Families,
    family: str,
    start: int,
    tokens: Tokens,
    perturbed: Perturbed,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = families[family](torch.float64)
    fast = perturbed(model)
    rows = Rows(model, tokens(1, 150), fast)
    monkeypatch.setattr(rows, "rollout_starts", lambda index, k: torch.tensor([[start]]))
    assert gradient_error(StepInputs.of(rows, fast, config(rollouts={"positions": 1}))) <= 1e-10


@FAMILIES
def test_gradient_is_exact_where_a_group_is_all_positions(
    families: Families, family: str, tokens: Tokens, perturbed: Perturbed
) -> None:
    """With one rollout at each position advantages are relative to the whole document."""
    model = families[family](torch.float64)
    fast = perturbed(model)
    rows = Rows(model, tokens(1, 131), fast, positions=4)
    inputs = StepInputs.of(rows, fast, config(rollouts={"per_position": 1, "reward": "cosine"}))
    assert gradient_error(inputs) <= 1e-10


@DTYPES
@FAMILIES
@pytest.mark.parametrize("in_context", [False, True])
def test_gradient_is_exact_on_spans_as_an_answer(
    families: Families,
    family: str,
    in_context: bool,
    dtype: torch.dtype,
    tokens: Tokens,
    perturbed: Perturbed,
) -> None:
    model = families[family](dtype)
    fast = perturbed(model)
    document = Rows(model, tokens(1, 131), fast, positions=4)
    header, question = tokens(1, 23, seed=1)[0].split([9, 14])
    query = QueryContext(text="?", header=header.tolist(), query=question.tolist())
    rows = answer_rows(document, [(3, 22), (90, 107)], fast, query, in_context)
    assert gradient_error(StepInputs.of(rows, fast, config())) <= TOLERANCE[dtype]


@FAMILIES
def test_gradient_is_exact_on_spans_of_their_own(
    families: Families, family: str, tokens: Tokens, perturbed: Perturbed
) -> None:
    model = families[family](torch.float64)
    fast = perturbed(model)
    document = Rows(model, tokens(1, 131), fast, positions=4)
    rows = span_rows(document, [(3, 35), (60, 92), (99, 131)], fast)
    assert gradient_error(StepInputs.of(rows, fast, config())) <= 1e-10


@DTYPES
@pytest.mark.parametrize("family", ["delta_net", "overlay"])
@pytest.mark.parametrize("length", [131, 333])
def test_gradient_is_exact_where_spans_are_held_out(
    families: Families,
    family: str,
    length: int,
    dtype: torch.dtype,
    tokens: Tokens,
    perturbed: Perturbed,
) -> None:
    model = families[family](dtype)
    settings = config(
        rollouts={"per_position": 2}, fast_weights={"targets": "fast_weights"}, guard="held_out"
    )
    fast = perturbed(model)
    run = prepared(Rows(model, tokens(1, length), fast, positions=4), settings)
    assert run.document.held_out
    assert gradient_error(run.inputs) <= TOLERANCE[dtype]


@DTYPES
@FAMILIES
@pytest.mark.parametrize(
    "settings",
    [
        with_reference(rollouts={"per_position": 1, "tokens": 1}),
        with_reference(rollouts={"reward": "hybrid", "temperature": 0.7}),
        with_reference(rollouts={"reward": "cosine", "per_position": 1, "tokens": 5}),
    ],
    ids=["one", "hybrid", "cosine"],
)
def test_gradient_is_exact_with_reference_rollouts(
    families: Families,
    family: str,
    settings: AdaptConfig,
    dtype: torch.dtype,
    tokens: Tokens,
    perturbed: Perturbed,
) -> None:
    model = families[family](dtype)
    fast = perturbed(model)
    rows = Rows(model, tokens(1, 131), fast, positions=4)
    inputs = StepInputs.of(rows, fast, settings)
    assert gradient_error(inputs) <= TOLERANCE[dtype]
    rollouts = loss_of(inputs).rollouts
    assert rollouts is not None
    assert rollouts.tokens.shape == (
        4 * (settings.rollouts.per_position + 1),
        settings.rollouts.tokens,
    )


@pytest.mark.parametrize("start", [20, 63, 64, 147])
def test_gradient_is_exact_at_edges_with_a_reference_rollout(
    families: Families,
    start: int,
    tokens: Tokens,
    perturbed: Perturbed,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """At the first start, around a kernel's chunk, and where document and rollout end together."""
    model, ids = families["delta_net"](torch.float64), tokens(1, 150)
    fast = perturbed(model)
    rows = Rows(model, ids, fast)
    monkeypatch.setattr(rows, "rollout_starts", lambda index, k: torch.tensor([[start]]))
    inputs = StepInputs.of(rows, fast, with_reference(rollouts={"positions": 1}))
    assert gradient_error(inputs) <= 1e-10
    rollouts = loss_of(inputs).rollouts
    assert rollouts is not None
    assert rollouts.tokens[-1].tolist() == ids[0, start : start + 3].tolist()


def test_the_naive_step_takes_given_rollouts(
    families: Families, tokens: Tokens, perturbed: Perturbed
) -> None:
    """They come from another seed; the gradient equals that of the step that drew them."""
    model = families["delta_net"](torch.float64)
    fast = perturbed(model)
    rows = Rows(model, tokens(1, 131), fast, positions=4)
    inputs = StepInputs.of(rows, fast, config())
    loss = loss_of(inputs)
    ours = torch.autograd.grad(loss.total, fast.parameters())
    drawn_next, _ = naive_gradient(inputs)
    given, _ = naive_gradient(inputs, loss.rollouts)
    for name, own in zip(fast, ours, strict=True):
        torch.testing.assert_close(given[name], own, atol=1e-12, rtol=1e-9)
    assert any(not torch.allclose(drawn_next[name], given[name]) for name in fast)


@pytest.fixture
def first_step(families: Families, tokens: Tokens) -> Callable[[AdaptConfig], StepLoss]:
    def compute(settings: AdaptConfig) -> StepLoss:
        model = families["delta_net"](torch.float64)
        fast = model.new_fast_weights("fast_weights", 8, 0)
        rows = Rows(model, tokens(1, 90), fast, context_tokens=30, positions=4)
        return loss_of(StepInputs.of(rows, fast, settings))

    return compute


def test_the_total_is_the_weighted_sum_of_its_terms(
    first_step: Callable[[AdaptConfig], StepLoss],
) -> None:
    loss = first_step(config(loss={"ntp": 0.5, "grpo": 2.0, "kl": 3.0}))
    total = 0.5 * loss.ntp + 2.0 * loss.grpo + 3.0 * loss.kl
    assert float(loss.total.detach()) == pytest.approx(float(total.detach()), rel=1e-12)
    assert float(loss.kl.detach()) == pytest.approx(0.0, abs=1e-9)  # nothing was adapted yet


def test_next_token_prediction_has_no_rollouts(
    first_step: Callable[[AdaptConfig], StepLoss],
) -> None:
    loss = first_step(config(objective="ntp", loss={"ntp": 0.5}))
    assert float(loss.total.detach()) == 0.5 * float(loss.ntp.detach())
    assert (loss.rollouts, loss.rollout_tokens, float(loss.grpo)) == (None, 0, 0.0)


def test_a_header_is_context_only(first_step: Callable[[AdaptConfig], StepLoss]) -> None:
    loss = first_step(config())
    assert loss.entropy.shape == (1, 90 - 30)
    assert loss.rollouts is not None
    assert int(loss.rollouts.starts.min()) >= 30
