"""The attention term: KL from the question's attention over a document to a target."""

import math
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from refine_server.ttt.fast_weights import FastWeights
from refine_server.ttt.models import CausalLM
from refine_server.ttt.query_side.attention_target import (
    EVIDENCE_MASS,
    SINK_TOKENS,
    AttentionTarget,
)
from refine_server.ttt.query_side.frozen_document import FrozenDocument
from refine_server.ttt.refine.inputs.rows import Span
from support.small_models import Families, Perturbed, Tokens

LENGTH = 37
CONTEXT = 6
"""Tokens of the prompt before the document."""
EVIDENCE = [Span(9, 14), Span(12, 17), Span(30, 33)]
ON_EVIDENCE = [*range(9, 17), *range(30, 33)]
LAYERS = 1, 3


@pytest.fixture(params=[torch.float64, torch.float32], ids=["fp64", "fp32"])
def attention_model(request: pytest.FixtureRequest, families: Families) -> CausalLM:
    return families["overlay"](request.param)


def aimed(
    model: CausalLM, tokens: Tokens, evidence: Sequence[Span] = EVIDENCE, context: int = CONTEXT
) -> AttentionTarget:
    document = FrozenDocument.read(model, tokens(1, LENGTH), context)
    question = tokens(1, 5, seed=2)[0].tolist()
    return AttentionTarget.of(document, question, evidence, LAYERS)


def naive_loss(target: AttentionTarget, fast: FastWeights, sinks: int) -> Tensor:
    """Compute the term token by token from the weights of a softmax."""
    weights = target.document.model.attention_to_prefix(
        target.question, target.document.state, fast, LAYERS
    )
    losses = []
    for own in weights:  # [1, Hq, T]
        attention = [own[0, :, t].mean() for t in range(sinks, LENGTH)]
        rest = LENGTH - sinks - len(ON_EVIDENCE)
        loss = own.new_zeros(())
        for t, a in enumerate(attention, sinks):
            share = EVIDENCE_MASS / len(ON_EVIDENCE)
            if t not in ON_EVIDENCE:
                share = (1 - EVIDENCE_MASS) / rest
            loss = loss + share * (math.log(share) - (a / sum(attention)).log())
        losses.append(loss)
    return torch.stack(losses).mean()


@pytest.mark.parametrize("context", [0, CONTEXT], ids=["no context", "context"])
def test_loss_and_gradient_are_those_of_a_softmax(
    attention_model: CausalLM, tokens: Tokens, perturbed: Perturbed, context: int
) -> None:
    target = aimed(attention_model, tokens, context=context)
    fast = perturbed(attention_model, "queries").requires_grad_()
    ours, naive = target.loss(fast), naive_loss(target, fast, max(context, SINK_TOKENS))
    assert float(ours.detach()) > 0
    torch.testing.assert_close(ours, naive)
    gradients = [
        torch.autograd.grad(loss, fast.parameters(), allow_unused=True) for loss in (ours, naive)
    ]
    assert any(own is not None and own.abs().max() > 0 for own in gradients[0])
    for own, other in zip(*gradients, strict=True):
        torch.testing.assert_close(own, other)


def test_the_target_leaves_out_the_sinks_and_sums_to_one(
    attention_model: CausalLM, tokens: Tokens
) -> None:
    target = aimed(attention_model, tokens)
    assert target.first == CONTEXT
    assert target.target.shape == (LENGTH - CONTEXT,)
    assert float(target.target.sum()) == pytest.approx(1)
    assert float(target.target[target.on_evidence].sum()) == pytest.approx(EVIDENCE_MASS)
    assert (target.on_evidence.nonzero()[:, 0] + CONTEXT).tolist() == ON_EVIDENCE
    assert aimed(attention_model, tokens, context=0).first == SINK_TOKENS


def test_evidence_may_cover_everything(
    attention_model: CausalLM, tokens: Tokens, perturbed: Perturbed
) -> None:
    target = aimed(attention_model, tokens, [Span(0, LENGTH)])
    assert float(target.target.sum()) == pytest.approx(1)
    fast = perturbed(attention_model, "queries")
    assert float(target.loss(fast)) >= 0
    assert target.evidence_mass(fast) == pytest.approx(1)


@pytest.mark.parametrize("evidence", [[], [Span(2, CONTEXT)]], ids=["none", "sinks"])
def test_without_evidence_there_is_no_target(
    attention_model: CausalLM, tokens: Tokens, evidence: list[Span]
) -> None:
    with pytest.raises(ValueError, match="no token behind the attention sinks"):
        aimed(attention_model, tokens, evidence)


def test_weights_that_underflow_leave_loss_and_gradient_finite(
    attention_model: CausalLM, tokens: Tokens, perturbed: Perturbed
) -> None:
    target = aimed(attention_model, tokens)
    fast = perturbed(attention_model, "queries")
    sharp = FastWeights({n: 1e4 * fast[n] for n in fast}).requires_grad_()
    weights = attention_model.attention_to_prefix(
        target.question, target.document.state, sharp, LAYERS
    )
    assert any((own[0].mean(0)[CONTEXT:] == 0).any() for own in weights)
    loss = target.loss(sharp)
    loss.backward()
    assert loss.isfinite()
    gradients = [tensor.grad for tensor in sharp.parameters() if tensor.grad is not None]
    assert gradients
    assert all(own.isfinite().all() for own in gradients)
    assert 0 <= target.evidence_mass(sharp) <= 1


def test_steps_on_the_loss_turn_attention_to_the_evidence(
    attention_model: CausalLM, tokens: Tokens, perturbed: Perturbed
) -> None:
    target = aimed(attention_model, tokens)
    fast = perturbed(attention_model, "queries").requires_grad_()
    before = target.evidence_mass(fast)
    optimizer = torch.optim.AdamW(fast.parameters(), lr=1e-2)
    for _ in range(20):
        optimizer.zero_grad()
        target.loss(fast).backward()
        optimizer.step()
    assert before < EVIDENCE_MASS - 0.1 < target.evidence_mass(fast)
