"""The document before and after an adaptation, as a run tells of it."""

import json
from collections.abc import Callable
from typing import Any

import pytest
import torch

from refine_server.ttt.batching import run as drive
from refine_server.ttt.fast_weights import BASE
from refine_server.ttt.interface.config import AdaptConfig
from refine_server.ttt.interface.events import (
    AdaptationStep,
    AnswerCompleted,
    DocumentTraced,
    Event,
)
from refine_server.ttt.interface.requests import AdaptRequest, AnswerRequest
from refine_server.ttt.interface.traces import MAX_BINS, DocumentTrace
from refine_server.ttt.models import CausalLM, load
from refine_server.ttt.programs.start import perform
from refine_server.ttt.query_side.document_cache import DocumentCache
from refine_server.ttt.refine.inputs.rows import Span
from refine_server.ttt.tracing.characters import Characters
from refine_server.ttt.tracing.document import TracedDocument
from refine_server.ttt.tracing.run import RunTracer
from support.small_models import Families

DOCUMENT = "The harbour code is amber. The bakery owner is Tobias Hartley. Rain falls. " * 6
QUERY = "What is the harbour code?"
ON_DOCUMENT = AdaptConfig(guard="none", trace=True, optimizer={"steps": 2})
ON_EVIDENCE = ON_DOCUMENT.updated(on={"kind": "evidence"}, guard="none")
MAX_BYTES = 256 * 1024
"""The size of a document's trace, as docs/adaptation.md states it."""


@pytest.fixture(scope="module")
def tiny() -> CausalLM:
    return load("tiny")


@pytest.fixture(scope="module")
def attending(families: Families, spell: Callable[[CausalLM], CausalLM]) -> CausalLM:
    """A small random model with attention, and a tokenizer whose ids it knows."""
    return spell(families["overlay"](torch.float32))


def events(model: CausalLM, adapt: AdaptConfig, **options: Any) -> list[Event]:
    return list(perform(model, AnswerRequest(DOCUMENT, QUERY, adapt), **options))


def traces(found: list[Event]) -> list[DocumentTrace]:
    return [event.trace for event in found if isinstance(event, DocumentTraced)]


@pytest.mark.parametrize("adapt", [ON_DOCUMENT, ON_EVIDENCE], ids=["document", "evidence"])
def test_a_run_tells_of_its_document_before_and_after(tiny: CausalLM, adapt: AdaptConfig) -> None:
    found = events(tiny, adapt)
    kinds = [type(event) for event in found if isinstance(event, DocumentTraced | AdaptationStep)]
    assert kinds == [DocumentTraced, AdaptationStep, AdaptationStep, DocumentTraced]
    before, after = traces(found)
    assert (before.stage, before.step) == ("before", 0)
    assert (after.stage, after.step) == ("after", 2)
    assert before.starts == after.starts
    assert (before.starts[0], before.tokens_per_bin) == (0, 1)
    assert len(before.entropy) == len(before.starts) == len(before.ends) == before.tokens
    assert before.attention is None  # tiny has no layers with attention
    last = found[-1]
    assert isinstance(last, AnswerCompleted)
    assert last.trace is not None
    assert (last.trace.before, last.trace.after) == (before, after)


def test_the_entropies_before_are_those_of_the_base_model(tiny: CausalLM) -> None:
    on_document, on_evidence = (traces(events(tiny, own))[0] for own in (ON_DOCUMENT, ON_EVIDENCE))
    assert on_document.entropy == pytest.approx(on_evidence.entropy, abs=2e-3)
    assert all(value is not None and value >= 0 for value in on_document.entropy[1:])


def test_after_an_adaptation_on_evidence_only_the_evidence_has_entropies(tiny: CausalLM) -> None:
    before, after = traces(events(tiny, ON_EVIDENCE))
    assert before.spans
    known = [start for start, value in zip(after.starts, after.entropy, strict=True) if value]
    inside = [
        any(span.start <= start < span.end for span in before.spans) for start in before.starts
    ]
    assert known == [start for start, own in zip(before.starts, inside, strict=True) if own]


def test_the_attention_of_the_question_sums_to_one(attending: CausalLM) -> None:
    """The reading of the whole document and the frozen document give the same."""
    shares = []
    for adapt in (ON_DOCUMENT, ON_EVIDENCE):
        before, after = traces(events(attending, adapt))
        for trace in (before, after):
            assert trace.attention is not None
            assert sum(trace.attention) == pytest.approx(1.0, abs=1e-3)
            assert trace.attention_layers == attending.attention_layers[2:]
        shares.append(before.attention)
        assert before.attention != after.attention
    assert shares[0] == pytest.approx(shares[1], rel=1e-2)


def test_the_attention_on_evidence_is_a_part_of_it(attending: CausalLM) -> None:
    before, _ = traces(events(attending, ON_EVIDENCE))
    assert before.attention is not None
    assert before.evidence
    marked = [
        share
        for start, share in zip(before.starts, before.attention, strict=True)
        if any(span.start <= start < span.end for span in before.evidence)
    ]
    assert before.evidence_attention == pytest.approx(sum(marked), rel=1e-2)


def test_what_the_guard_holds_out_is_marked_and_its_evaluations_are_in_the_steps(
    tiny: CausalLM,
) -> None:
    found = events(tiny, ON_DOCUMENT.updated(guard="held_out"))
    before = traces(found)[0]
    assert before.held_out
    steps = [event.report for event in found if isinstance(event, AdaptationStep)]
    evaluated = [step.trace.held_out for step in steps if step.trace is not None]
    assert [result.step for result in evaluated if result is not None] == [0, 1]


def test_an_answer_of_the_base_model_tells_of_its_document(attending: CausalLM) -> None:
    found = events(attending, AdaptConfig(objective="none", trace=True))
    [before] = traces(found)
    assert before.attention is not None
    last = found[-1]
    assert isinstance(last, AnswerCompleted)
    assert last.trace is not None
    assert last.trace.after is None


def test_spans_are_told_and_rollouts_start_in_them(tiny: CausalLM) -> None:
    on = {"kind": "spans", "tokens": 16}
    found = events(tiny, ON_DOCUMENT.updated(on=on, rollouts={"positions": 3}))
    before = traces(found)[0]
    assert len(before.spans) == 3
    [first, _] = [event.report.trace for event in found if isinstance(event, AdaptationStep)]
    assert first is not None
    for position in first.positions:
        span = before.spans[position.row]
        assert position.start is not None
        assert position.end is not None
        assert span.start <= position.start < position.end <= span.end
        assert "".join(position.own.pieces) == DOCUMENT[position.start : position.end]


@pytest.mark.parametrize("kind", ["document", "prompt", "evidence", "answer", "answer_in_context"])
def test_the_characters_of_a_position_are_its_own_continuation(tiny: CausalLM, kind: str) -> None:
    on = {"kind": kind}
    if kind.startswith("answer"):
        on = {"kind": "query_spans", "learn_as": kind}
    found = events(tiny, ON_DOCUMENT.updated(on=on, guard="none", optimizer={"steps": 1}))
    [trace] = [event.report.trace for event in found if isinstance(event, AdaptationStep)]
    assert trace is not None
    assert trace.positions
    for position in trace.positions:
        text = "".join(position.own.pieces)
        if position.start is None:
            assert kind == "prompt"
        else:
            assert text == DOCUMENT[position.start : position.end]


def test_a_document_without_entropies_is_read_again_once(attending: CausalLM) -> None:
    cache = DocumentCache(lambda: 2**30, 60.0)
    events(attending, ON_EVIDENCE.updated(trace=False), documents=cache)
    first = traces(events(attending, ON_EVIDENCE, documents=cache))
    kept = cache.nbytes
    second = traces(events(attending, ON_EVIDENCE, documents=cache))
    assert first == second
    assert cache.nbytes == kept


def test_a_kept_adaptation_for_several_queries_tells_their_evidence(attending: CausalLM) -> None:
    queries = (QUERY, "Who is the bakery owner?")
    request = AdaptRequest(DOCUMENT, ON_EVIDENCE, queries=queries)
    before, after = traces(list(perform(attending, request)))
    assert before.evidence == after.evidence
    assert before.attention is not None
    assert sum(before.attention) == pytest.approx(1.0, abs=1e-3)


def test_a_long_document_is_binned_within_the_stated_size(tiny: CausalLM) -> None:
    tokens = 16_384
    characters = Characters(
        starts=tuple(range(0, 5 * tokens, 5)), ends=tuple(range(5, 5 * tokens + 1, 5))
    )
    document = TracedDocument(
        model=tiny,
        input_ids=torch.zeros(1, tokens + 3, dtype=torch.long),
        context_tokens=3,
        characters=characters,
        questions=[],
        evidence=[Span(10, 90)],
    )
    values = torch.rand(tokens + 3, generator=torch.Generator().manual_seed(0))
    attention = values / values.sum()
    trace = document.describe("before", 0, 10 * values, attention)
    assert len(trace.starts) == MAX_BINS
    assert trace.tokens_per_bin == 4
    assert (trace.starts[-1], trace.ends[-1]) == (5 * (tokens - 4), 5 * tokens)
    assert trace.entropy[0] == pytest.approx(float(10 * values[3:7].mean()), abs=1e-3)
    assert trace.attention is not None
    assert trace.attention[1] == pytest.approx(float(attention[7:11].sum()), rel=1e-3)
    assert len(json.dumps(trace.model_dump(mode="json"))) < MAX_BYTES


def test_a_tracer_leaves_the_document_as_it_is(attending: CausalLM) -> None:
    ids = torch.tensor([[1, 2, 3, 4, 5, 6, 7, 8]])
    document = TracedDocument(
        model=attending,
        input_ids=ids,
        context_tokens=0,
        characters=Characters(starts=tuple(range(8)), ends=tuple(range(1, 9))),
        questions=[[9, 10]],
        evidence=[],
    )
    told: list[DocumentTrace] = []
    tracer = RunTracer(document, told.append)
    before = attending(ids, None, BASE).hidden
    drive(tracer.before())
    assert torch.equal(attending(ids, None, BASE).hidden, before)
    [trace] = told
    assert trace.entropy[0] is None  # nothing predicts the first token
    assert trace.attention is not None
    assert trace.attention[:4] == (0.0,) * 4  # attention sinks
    assert trace.evidence_attention is None
