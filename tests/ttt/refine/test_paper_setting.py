"""The paper's setting makes the step that its code makes: AdamW on all weights over the prompt."""

import pytest
import torch

from refine_server.ttt.batching import run
from refine_server.ttt.interface.config import AdaptConfig
from refine_server.ttt.models import CausalLM
from refine_server.ttt.refine.inputs.rows import Rows
from refine_server.ttt.refine.inputs.spans import QueryContext, prompt_rows
from refine_server.ttt.refine.inputs.step_inputs import StepInputs
from refine_server.ttt.refine.loop import adapt
from refine_server.ttt.refine.naive import naive_gradient
from support.small_models import Families, Tokens

CONTEXT, DOCUMENT, QUERY = 3, 90, 11
"""Tokens of the prompt's header, of the document and of the query."""


@pytest.fixture(params=["delta_net", "lact", "overlay"])
def model(request: pytest.FixtureRequest, families: Families) -> CausalLM:
    """One family of each kind of state."""
    return families[request.param](torch.float64)


@pytest.mark.parametrize("objective", ["refine", "ntp"])
def test_the_step_equals_a_naive_one_over_document_and_query(
    model: CausalLM, tokens: Tokens, objective: str
) -> None:
    """Naive: every rollout reads its prefix again, and torch's AdamW steps all weights."""
    config = AdaptConfig.model_validate({"preset": "paper", "objective": objective})
    ids = tokens(1, CONTEXT + DOCUMENT + QUERY)
    document_ids, query_ids = ids.split([CONTEXT + DOCUMENT, QUERY], dim=1)
    query = QueryContext(text="", header=[], query=query_ids[0].tolist())
    fast = model.new_fast_weights("all", 8, 0)
    document = Rows(model, document_ids, fast, context_tokens=CONTEXT, positions=8)
    adapted = run(adapt(document, fast, config, query=query))

    own = model.new_fast_weights("all", 8, 0)
    prompt = Rows(model, ids, own, context_tokens=CONTEXT, positions=8)
    before = {name: own[name].clone() for name in own}
    own.requires_grad_()
    if objective == "ntp":
        loss = prompt.token_stats(model(ids, None, own).hidden, own).ntp_loss
        loss.backward()
    else:
        gradient, _ = naive_gradient(StepInputs.of(prompt, own, config))
        for name in own:
            own[name].grad = gradient[name]
    optimizer = torch.optim.AdamW(own.parameters(), lr=1e-6, weight_decay=0.01)
    torch.nn.utils.clip_grad_norm_(own.parameters(), 1.0)
    optimizer.step()
    for name in own:
        change, expected = (w[name].detach() - before[name] for w in (adapted.fast_weights, own))
        torch.testing.assert_close(change, expected, atol=1e-12, rtol=1e-6)
    assert adapted.report.accepted_step == 1


def test_the_query_is_adapted_on_but_not_read_into_the_documents_state(
    model: CausalLM, tokens: Tokens
) -> None:
    config = AdaptConfig.model_validate({"preset": "paper", "optimizer": {"learning_rate": 1e-3}})
    document_ids, query_ids = tokens(1, DOCUMENT), tokens(1, QUERY, seed=2)
    adapted = []
    for asked in (query_ids, query_ids.flip(1)):
        query = QueryContext(text="", header=[], query=asked[0].tolist())
        fast = model.new_fast_weights("all", 8, 0)
        adapted.append(
            run(adapt(Rows(model, document_ids, fast, positions=8), fast, config, query=query))
        )
    one, other = adapted
    assert one.document_tokens == DOCUMENT
    assert any(
        not torch.equal(one.fast_weights[n], other.fast_weights[n]) for n in one.fast_weights
    )
    continued = model(query_ids, one.state, one.fast_weights).hidden
    whole = model(torch.cat([document_ids, query_ids], dim=1), None, one.fast_weights).hidden
    torch.testing.assert_close(continued, whole[:, DOCUMENT:])


def test_what_the_guard_holds_out_of_the_document_is_held_out_of_the_prompt(
    model: CausalLM, tokens: Tokens
) -> None:
    config = AdaptConfig.model_validate(
        {"preset": "paper", "guard": "held_out", "optimizer": {"steps": 2}}
    )
    fast = model.new_fast_weights("all", 8, 0)
    document = Rows(model, tokens(1, DOCUMENT), fast, positions=8)
    query = QueryContext(text="", header=[], query=tokens(1, QUERY, seed=2)[0].tolist())
    adapted = run(adapt(document, fast, config, query=query))
    assert len(adapted.report.held_out) > 1
    rows = prompt_rows(document, fast, query)
    assert rows.held_out == document.held_out
    assert rows.held_out
    assert rows.loss_mask is not None
    assert rows.loss_mask[-QUERY:].all()


def test_without_a_query_there_is_no_prompt(model: CausalLM, tokens: Tokens) -> None:
    fast = model.new_fast_weights("all", 8, 0)
    document = Rows(model, tokens(1, DOCUMENT), fast, positions=8)
    with pytest.raises(ValueError, match="prompt needs a query"):
        run(adapt(document, fast, AdaptConfig(preset="paper")))
