"""Spans are windows around the highest scores; an answer's spans keep the document's order."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from refine_server.ttt.fast_weights import BASE
from refine_server.ttt.interface.config import (
    AdaptConfig,
    OnQuerySpans,
    OnSpans,
    RolloutConfig,
    Selection,
)
from refine_server.ttt.models import CausalLM, load
from refine_server.ttt.pieces import run_pieces
from refine_server.ttt.refine.inputs.rows import Rows
from refine_server.ttt.refine.inputs.spans import QueryContext, choose_spans, select_spans

FILLER = "The old man walked along the path. It rained until late. The dogs barked at the moon. "


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@given(
    T=st.integers(8, 120),
    count=st.integers(1, 12),
    length=st.integers(4, 32),
    rule=st.sampled_from(["entropy", "surprise", "uniform", "argmax", "argmin"]),
)
@settings(max_examples=60, deadline=None)
def test_spans_lie_inside_and_do_not_overlap(
    T: int, count: int, length: int, rule: Selection
) -> None:
    length = min(length, T)
    scores = torch.rand(T, generator=seeded())
    starts = select_spans(scores, scores, rule, count=count, length=length, generator=seeded())
    assert 1 <= len(starts) <= count
    assert all(0 <= s <= T - length for s in starts)
    assert all(b - a >= length for a, b in itertools.pairwise(starts))


def test_the_most_surprising_span_comes_first() -> None:
    surprise = torch.zeros(100)
    surprise[60:65] = 5.0
    starts = select_spans(
        torch.zeros(100), surprise, "surprise", count=1, length=10, generator=seeded()
    )
    assert starts == [57]


@pytest.fixture(scope="module")
def tiny() -> CausalLM:
    return load("tiny")


def rows_of(model: CausalLM, text: str) -> Rows:
    ids = model.tokenizer(text, add_special_tokens=False)["input_ids"]
    return Rows(model, torch.tensor([ids]), BASE)


@pytest.mark.parametrize("guard", ["none", "held_out"])
def test_a_guard_has_its_share_of_a_short_document(tiny: CausalLM, guard: str) -> None:
    document = rows_of(tiny, FILLER * 2)
    settings = AdaptConfig(
        on=OnSpans(tokens=10), rollouts=RolloutConfig(positions=128), guard=guard
    )
    spans = run_pieces(choose_spans(document, settings, seeded(), None))
    covered = sum(end - start for start, end in spans)
    share = 1.0 if guard == "none" else 0.75
    assert share / 2 < covered / document.num_targets <= share


def test_an_answer_is_learned_in_the_documents_order(tiny: CausalLM) -> None:
    facts = "The harbour code is amber. ", "The harbour code is coral. "
    document = rows_of(tiny, FILLER * 2 + facts[0] + FILLER * 3 + facts[1] + FILLER * 2)
    query = QueryContext(text="What are the harbour codes? The harbour code", header=[], query=[])
    found = {}
    for spans_as in ("text", "answer"):
        settings = AdaptConfig(on=OnQuerySpans(learn_as=spans_as, tokens=12), guard="none")
        ids, spans = (
            document.input_ids[0],
            run_pieces(choose_spans(document, settings, seeded(), query)),
        )
        found[spans_as] = [tiny.tokenizer.decode(ids[start:end]).strip() for start, end in spans]
    for spans_as, expected in (("text", facts[::-1]), ("answer", facts)):
        pairs = zip(expected, found[spans_as], strict=True)
        assert all(fact.strip() in span for fact, span in pairs)


def test_query_spans_need_a_query(tiny: CausalLM) -> None:
    settings = AdaptConfig(on=OnQuerySpans())
    with pytest.raises(ValueError, match="needs a query"):
        run_pieces(choose_spans(rows_of(tiny, FILLER), settings, seeded(), None))
