"""Rows: where rollouts start in them, and how spans become an answer."""

import pytest
import torch

from refine_server.ttt.fast_weights import BASE, FastWeights
from refine_server.ttt.models import CausalLM
from refine_server.ttt.models.tape import Graph
from refine_server.ttt.pieces import run_pieces
from refine_server.ttt.refine.inputs.row_batch import RowBatch
from refine_server.ttt.refine.inputs.rows import Rows, Span, TokenStats, continuations
from refine_server.ttt.refine.inputs.spans import QueryContext, answer_rows, span_rows
from support.small_models import Families, Perturbed, Tokens


@pytest.fixture(params=["delta_net", "overlay"])
def model(request: pytest.FixtureRequest, families: Families) -> CausalLM:
    return families[request.param](torch.float64)


def test_rollouts_start_behind_the_header_and_end_in_the_document(
    model: CausalLM, tokens: Tokens
) -> None:
    rows = Rows(model, tokens(1, 131), BASE, context_tokens=30)
    assert rows.rollout_starts(torch.tensor([[0, 100]]), 5).tolist() == [[30, 126]]


def test_rollouts_keep_their_shortest_prefix(model: CausalLM, tokens: Tokens) -> None:
    rows = Rows(model, tokens(1, 131), BASE)
    assert rows.rollout_starts(torch.tensor([[0, 10, 40]]), 5).tolist() == [[20, 20, 41]]


def test_rollouts_move_behind_a_held_out_span_or_before_it(model: CausalLM, tokens: Tokens) -> None:
    rows = Rows(model, tokens(1, 100), BASE)
    rows.held_out = [Span(40, 56), Span(80, 96)]
    index = torch.tensor([[34, 35, 54, 55, 75, 98]])  # one less than the token itself
    assert rows.rollout_starts(index, 5).tolist() == [[35, 56, 56, 56, 75, 75]]
    assert rows.loss_mask is not None
    assert (~rows.loss_mask).nonzero().flatten().tolist() == [*range(39, 55), *range(79, 95)]


def test_held_out_spans_are_looked_up_once(model: CausalLM, tokens: Tokens) -> None:
    rows = Rows(model, tokens(1, 100), BASE)
    rows.held_out = [Span(40, 56)]
    mask = rows.loss_mask
    assert rows.loss_mask is mask
    rows.held_out = [Span(50, 66)]
    assert rows.loss_mask is not None
    assert not rows.loss_mask[64]
    assert rows.rollout_starts(torch.tensor([[51]]), 5).tolist() == [[66]]


def test_the_next_token_loss_does_not_wait_for_a_count() -> None:
    """An index by a mask asks the device how many tokens are left; meta tensors cannot tell."""
    mask = torch.tensor([True, False, True, True])
    log_prob = torch.tensor([[-1.0, -torch.inf, -2.0, -6.0]])
    stats = TokenStats(log_prob=log_prob, entropy=log_prob, loss_mask=mask)
    assert float(stats.ntp_loss) == 3.0
    on_meta = TokenStats(
        log_prob=log_prob.to("meta"), entropy=log_prob.to("meta"), loss_mask=mask.to("meta")
    )
    assert on_meta.ntp_loss.shape == ()


def test_continuations_are_the_rows_own_tokens() -> None:
    ids = torch.arange(20).view(2, 10)
    starts = torch.tensor([[1, 6], [0, 7]])
    expected = [[1, 2, 3], [6, 7, 8], [10, 11, 12], [17, 18, 19]]
    assert continuations(ids, starts, 3).tolist() == expected


def test_spans_become_rows_of_their_own(model: CausalLM, tokens: Tokens) -> None:
    document = Rows(model, tokens(1, 131), BASE)
    rows = span_rows(document, [Span(3, 35), Span(60, 92)], BASE)
    assert torch.equal(rows.input_ids[1], document.input_ids[0, 60:92])
    assert rows.rollout_starts(torch.tensor([[0], [0]]), 5).tolist() == [[8], [8]]


@pytest.mark.parametrize("in_context", [False, True])
def test_spans_become_the_answer_to_a_query(
    model: CausalLM, tokens: Tokens, in_context: bool
) -> None:
    document = Rows(model, tokens(1, 131), BASE, positions=4)
    header, question = tokens(1, 23, seed=1)[0].split([9, 14])
    query = QueryContext(text="?", header=header.tolist(), query=question.tolist())
    rows = answer_rows(document, [Span(3, 22), Span(90, 107)], BASE, query, in_context)
    text = document.input_ids[0]
    prompt = torch.cat([text if in_context else header, question])
    assert rows.input_ids[0].tolist() == torch.cat([prompt, text[3:22], text[90:107]]).tolist()
    first = len(prompt)
    assert rows.rollout_starts(torch.tensor([[0, 35]]), 5).tolist() == [[first, first + 31]]


def test_rows_of_a_batch_are_read_as_alone(
    model: CausalLM, tokens: Tokens, perturbed: Perturbed
) -> None:
    """Headers and lengths differ; each request gets the statistics and the end of its own rows."""
    copies = [perturbed(model, seed=seed) for seed in range(3)]
    alone = [
        Rows(model, tokens(1, length, seed=length), fast, context_tokens=context)
        for fast, length, context in zip(copies, (90, 131, 64), (5, 0, 12), strict=True)
    ]
    after = tokens(1, 3, seed=7)
    forward = RowBatch(alone).forward(FastWeights.stack(copies), Graph())
    parts = run_pieces(forward).requests()
    for rows, part in zip(alone, parts, strict=True):
        trunk = rows.trunk(rows.fast)
        expected = rows.token_stats(trunk.hidden, rows.fast)
        torch.testing.assert_close(part.hidden, trunk.hidden)
        torch.testing.assert_close(part.token_stats.log_prob, expected.log_prob)
        torch.testing.assert_close(part.token_stats.entropy, expected.entropy)
        torch.testing.assert_close(
            model(after, part.end_state(), rows.fast).hidden,
            model(after, trunk.state, rows.fast).hidden,
        )
