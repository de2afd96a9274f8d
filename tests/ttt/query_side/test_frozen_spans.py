"""A step on spans of a frozen document: its gradient is that of reading every prefix again."""

import pytest
import torch

from refine_server.ttt.interface.config import AdaptConfig
from refine_server.ttt.models import CausalLM, reader
from refine_server.ttt.query_side import frozen_document
from refine_server.ttt.query_side.frozen_document import FrozenDocument
from refine_server.ttt.query_side.frozen_spans import FrozenSpans
from refine_server.ttt.query_side.naive import naive_gradient
from refine_server.ttt.refine.inputs.rows import Span
from refine_server.ttt.refine.inputs.step_inputs import StepInputs
from support.small_models import MakeModel, Perturbed, Tokens
from support.steps import TOLERANCE, loss_of

LENGTH = 131


@pytest.fixture(autouse=True)
def _short_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "BOUNDARY_TOKENS", 24)
    monkeypatch.setattr(frozen_document, "SNAPSHOT_TOKENS", 48)


def states_of(document: FrozenDocument) -> list[torch.Tensor]:
    """All tensors of a document's states."""
    tensors: list[torch.Tensor] = []

    def visit(value: object) -> None:
        if isinstance(value, torch.Tensor):
            tensors.append(value)
        elif isinstance(value, tuple):
            for item in value:
                visit(item)
        elif hasattr(value, "__slots__"):
            for name in value.__slots__:
                visit(getattr(value, name))

    visit((document.state, document.snapshots))
    return tensors


@pytest.mark.parametrize("dtype", TOLERANCE, ids=["fp64", "fp32"])
@pytest.mark.parametrize("targets", ["queries", "low_rank"])
def test_gradient_is_exact_in_every_family(
    make_model: MakeModel, dtype: torch.dtype, targets: str, tokens: Tokens, perturbed: Perturbed
) -> None:
    """And the states of the document stay, bit by bit, what they were."""
    model = make_model(dtype)
    settings = AdaptConfig().updated(
        rollouts={"positions": 6, "per_position": 2, "temperature": 4.0, "reward": "hybrid"}
    )
    document = FrozenDocument.read(model, tokens(1, LENGTH), 3)
    before = [tensor.clone() for tensor in states_of(document)]
    fast = perturbed(model, targets)
    spans = [Span(2, 19), Span(47, 64), Span(110, 127)]
    rows = FrozenSpans(document, spans, fast, positions=2)
    inputs = StepInputs.of(rows, fast, settings)

    loss = loss_of(inputs)
    loss.total.backward()
    ours = {n: torch.zeros_like(fast[n]) if fast[n].grad is None else fast[n].grad for n in fast}
    assert loss.rollouts is not None
    naive = naive_gradient(inputs, rows, loss.rollouts)

    difference = sum(float((ours[name] - naive[name]).square().sum()) for name in naive)
    length = sum(float(gradient.square().sum()) for gradient in naive.values())
    assert length > 0
    assert (difference / length) ** 0.5 <= TOLERANCE[dtype]
    after = states_of(document)
    assert before
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_the_state_before_a_token_is_that_of_reading_what_stands_before_it(
    model: CausalLM, tokens: Tokens
) -> None:
    ids = tokens(1, LENGTH)
    document = FrozenDocument.read(model, ids)
    positions = torch.tensor([1, 47, 48, 49, 97, 130, 131])
    after = tokens(1, 5, seed=2)
    states = document.states_before(positions)
    ours = model(after.expand(7, 5), states).hidden
    for row, position in enumerate(positions.tolist()):
        expected = model(after, model(ids[:, :position]).state).hidden
        assert (ours[row] - expected[0]).abs().max() <= 1e-10
