"""Adaptations of queries that are kept: what aims them, and what answers from them."""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from refine_server.ttt.decoding.prompts.prompt import PromptTemplate
from refine_server.ttt.interface.config import AdaptConfig, SamplingConfig
from refine_server.ttt.interface.errors import IsolationError, RequestError
from refine_server.ttt.interface.events import (
    AdaptationEnded,
    AdaptationStarted,
    AdaptationStep,
    AnswerCompleted,
    CompletionDelta,
    CompletionEnded,
    DocumentAdapted,
    DocumentRead,
    DocumentReading,
    Event,
)
from refine_server.ttt.interface.evidence import (
    DocumentSpan,
    Evidence,
    EvidenceByAttention,
    EvidenceByUtility,
    EvidenceByWords,
    EvidenceSpans,
)
from refine_server.ttt.interface.requests import (
    AdaptRequest,
    AnswerRequest,
    CompletionRequest,
    Conversation,
    Limits,
    Message,
)
from refine_server.ttt.kept import dump, question, restore
from refine_server.ttt.models import CausalLM, load
from refine_server.ttt.programs.start import perform
from refine_server.ttt.query_side.document_cache import DocumentCache
from refine_server.ttt.query_side.query_adaptation import QueryAdaptation
from support.small_models import Families

EXAMPLES = Path(__file__).parents[3] / "examples"
EXAMPLE = json.loads((EXAMPLES / "tiny_example.json").read_text())
DOCUMENT = (EXAMPLES / EXAMPLE["document"]).read_text()
QUERIES = tuple(question["query"] for question in EXAMPLE["questions"][:2])
ON_EVIDENCE = AdaptConfig().updated(
    on={"kind": "evidence"}, rollouts={"positions": 4}, optimizer={"steps": 2}, guard="none"
)
FINE = EvidenceByWords(count=1, tokens=32)
SAMPLING = SamplingConfig(max_tokens=8)


@pytest.fixture(scope="module")
def tiny() -> CausalLM:
    return load("tiny")


@pytest.fixture(scope="module")
def attending(families: Families, spell: Callable[[CausalLM], CausalLM]) -> CausalLM:
    """A small random model with attention, and a tokenizer whose ids it knows."""
    return spell(families["overlay"](torch.float32))


def adapted(
    model: CausalLM,
    document: str = DOCUMENT,
    queries: tuple[str, ...] = QUERIES,
    evidence: Evidence | None = FINE,
    adapt: AdaptConfig = ON_EVIDENCE,
    **options: Any,
) -> tuple[list[Event], QueryAdaptation]:
    request = AdaptRequest(document, adapt, "ada", queries, evidence)
    template = PromptTemplate(model.tokenizer)
    events = list(perform(model, request, template=template, **options))
    last = events[-1]
    assert isinstance(last, DocumentAdapted)
    assert isinstance(last.document, QueryAdaptation)
    return events, last.document


def answered(model: CausalLM, work: Any, **options: Any) -> AnswerCompleted:
    template = PromptTemplate(model.tokenizer)
    *_, last = perform(model, work, template=template, **options)
    assert isinstance(last, AnswerCompleted)
    return last


def reading(events: Sequence[Event]) -> DocumentRead:
    """Return the event that ends the reading of the document."""
    return next(event for event in events if isinstance(event, DocumentRead))


def test_an_adaptation_for_one_query_answers_as_the_request_that_adapts(tiny: CausalLM) -> None:
    """But for the rounding of its weights."""
    adapt = ON_EVIDENCE.updated(optimizer={"learning_rate": 1e-3})
    events, kept = adapted(tiny, queries=QUERIES[:1], adapt=adapt)
    assert [type(event) for event in events] == [
        *(DocumentReading, DocumentRead, AdaptationStarted, AdaptationStep, AdaptationStep),
        *(AdaptationEnded, DocumentAdapted),
    ]
    at_once = answered(
        tiny, AnswerRequest(DOCUMENT, QUERIES[0], adapt, SAMPLING, evidence=FINE, owner="ada")
    )
    later = answered(tiny, question(kept, QUERIES[0], SAMPLING, context="document", evidence=FINE))
    assert later.answer == at_once.answer
    assert later.citations == at_once.citations == kept.citations
    steps = [report.model_copy(update={"seconds": 0.0}) for report in at_once.adaptation.steps]
    assert [r.model_copy(update={"seconds": 0.0}) for r in later.adaptation.steps] == steps
    assert kept.report.adapted


def test_several_queries_aim_at_the_evidence_of_all(tiny: CausalLM) -> None:
    _, both = adapted(tiny)
    cited = [adapted(tiny, queries=(query,))[1].citations for query in QUERIES]
    assert {c.start for c in both.citations} == {c.start for own in cited for c in own}
    assert len(both.citations) == 2


def test_evidence_that_the_client_names_needs_no_query(tiny: CausalLM) -> None:
    start = DOCUMENT.index("The lighthouse keeper")
    named = EvidenceSpans(spans=(DocumentSpan(start=start, end=start + 60),))
    _, kept = adapted(tiny, queries=(), evidence=named)
    assert [(c.start, c.end, c.score) for c in kept.citations] == [(start, start + 60, None)]
    assert kept.report.adapted
    words = EvidenceByWords(words="harbour code", count=1, tokens=32)
    _, kept = adapted(tiny, queries=(), evidence=words)
    assert "harbour code" in kept.citations[0].text


@pytest.mark.parametrize("evidence", [EvidenceByAttention, EvidenceByUtility])
def test_the_model_chooses_the_evidence_for_attention_to_turn_to(
    attending: CausalLM, evidence: type[EvidenceByAttention | EvidenceByUtility]
) -> None:
    adapt = ON_EVIDENCE.updated(
        objective="attention",
        loss={"attention": 1.0},
        optimizer={"steps": 12, "learning_rate": 1e-2},
    )
    document = "abcdefgh ijklmnop. " * 6 + "The key is under the mat. " + "qrstuvwx yz. " * 6
    queries = ("Where is the key?", "What is under the mat?")
    _, kept = adapted(attending, document, queries, evidence(count=2, tokens=32), adapt)
    first, *_, last = kept.report.steps
    assert last.attention < first.attention
    assert 2 <= len(kept.citations) <= 4


@pytest.mark.parametrize(
    ("queries", "evidence", "changes", "param"),
    [
        ((), None, {}, "queries"),
        ((), EvidenceByWords(), {}, "queries"),
        ((), EvidenceByUtility(), {}, "queries"),
        (("who", ""), None, {}, "queries.1"),
        (("who",) * 9, EvidenceByWords(count=8), {}, "queries"),
        (("who",), None, {"on": {"kind": "document"}}, None),
        (("who", "where"), None, {"on": {"kind": "document"}}, "queries"),
        ((), FINE, {"on": {"kind": "document"}}, "evidence"),
    ],
)
def test_what_has_no_aim_is_refused_by_name(
    tiny: CausalLM,
    queries: tuple[str, ...],
    evidence: Evidence | None,
    changes: dict[str, Any],
    param: str | None,
) -> None:
    adapt = ON_EVIDENCE.updated(**changes)
    work = AdaptRequest(DOCUMENT, adapt, "ada", queries, evidence)
    if param is None:
        assert isinstance(next(perform(tiny, work)), DocumentReading)
        return
    with pytest.raises(RequestError) as error:
        next(perform(tiny, work))
    assert error.value.param == param


def test_attention_that_cannot_turn_to_the_evidence_is_refused(attending: CausalLM) -> None:
    adapt = ON_EVIDENCE.updated(objective="attention", loss={"attention": 1.0})
    first = EvidenceSpans(spans=(DocumentSpan(start=0, end=2),))
    with pytest.raises(RequestError, match="attention sinks") as error:
        adapted(attending, "abcdefgh ijklmnop. " * 6, ("Where?",), first, adapt)
    assert error.value.param == "evidence"


@pytest.mark.parametrize("context", ["document", "passages", "document+passages"])
def test_an_answer_reads_what_the_question_says(tiny: CausalLM, context: Any) -> None:
    _, kept = adapted(tiny)
    fields = {"context": context, "evidence": FINE}
    asked = question(kept, QUERIES[0], SAMPLING, compare_base=True, **fields)
    answer = answered(tiny, asked)
    base = AnswerRequest(DOCUMENT, QUERIES[0], AdaptConfig(objective="none"), SAMPLING, **fields)
    unadapted = answered(tiny, base)
    assert answer.base_answer == unadapted.answer
    assert answer.usage == unadapted.usage.model_copy(
        update={"completion_tokens": answer.usage.completion_tokens}
    )
    assert answer.citations == unadapted.citations
    assert answer.adaptation == kept.report


def test_questions_find_the_document_as_it_was_read(tiny: CausalLM) -> None:
    cache = DocumentCache(lambda: 10**9, 60.0)
    _, kept = adapted(tiny, documents=cache)

    def ask(documents: DocumentCache) -> tuple[bool, str]:
        asked = question(kept, "Who?", SAMPLING, context="document")
        *events, last = perform(tiny, asked, documents=documents)
        assert isinstance(last, AnswerCompleted)
        return reading(events).is_cached, last.answer

    cached, answer = ask(cache)
    assert cached
    assert ask(DocumentCache(lambda: 10**9, 60.0)) == (False, answer)  # as after a new start


@pytest.mark.parametrize("context", ["document", "document+passages"])
@pytest.mark.parametrize("length", [None, 300])
def test_all_queries_read_the_same_parts_of_a_long_document(
    tiny: CausalLM, context: Any, length: int | None
) -> None:
    """Whatever their own length, so that its state serves all of them."""
    limits = Limits(document_tokens=120, query_tokens=200, context_length=length)
    cache = DocumentCache(lambda: 10**9, 60.0)
    events, kept = adapted(tiny, documents=cache, limits=limits)
    assert kept.overflow == reading(events).overflow is not None
    assert kept.overflow.handled == "truncate_middle"
    for query in ("Who?", f"{'So many words, and then: ' * 6}{QUERIES[0]}"):
        asked = question(kept, query, SAMPLING, context=context, evidence=FINE)
        first, *_, last = perform(tiny, asked, documents=cache, limits=limits)
        assert isinstance(first, DocumentRead)  # nothing had to be read
        assert first.is_cached
        assert first.overflow == kept.overflow
        assert isinstance(last, AnswerCompleted)
        [cited] = last.citations
        assert DOCUMENT[cited.start : cited.end] == cited.text


def test_a_query_without_a_place_behind_the_document_is_refused(tiny: CausalLM) -> None:
    limits = Limits(query_tokens=200, context_length=300)
    _, kept = adapted(tiny, limits=limits)
    asked = question(kept, "Who? " * 90, SAMPLING, context="document")
    with pytest.raises(RequestError, match="follow this document") as error:
        next(perform(tiny, asked, limits=limits))
    assert error.value.param == "query"


def test_a_stored_adaptation_answers_alike(tiny: CausalLM) -> None:
    _, kept = adapted(tiny, adapt=ON_EVIDENCE.updated(optimizer={"learning_rate": 0.05}))
    data, described = dump(kept)
    again = restore(data, json.loads(json.dumps(described)), torch.device("cpu"))
    assert isinstance(again, QueryAdaptation)
    assert again.nbytes == kept.nbytes
    assert (again.document, again.citations, again.report) == (
        kept.document,
        kept.citations,
        kept.report,
    )
    for name in kept.fast_weights:
        assert torch.equal(again.fast_weights[name], kept.fast_weights[name])


def test_an_adaptation_answers_its_owner_alone(tiny: CausalLM) -> None:
    _, kept = adapted(tiny)
    asked = question(kept, "Who?", SAMPLING, context="document")
    assert isinstance(asked, AnswerRequest)
    completion = CompletionRequest(("Who?",), document=DOCUMENT, kept=kept, owner="bob")
    for work in (replace(asked, owner="bob"), completion):
        with pytest.raises(IsolationError, match="'ada'"):
            next(perform(tiny, work))
    mixed = replace(kept, owner="bob")  # but the fast weights are ada's
    with pytest.raises(IsolationError):
        list(perform(tiny, question(mixed, "Who?", SAMPLING, context="document")))


def test_a_completion_continues_the_document_under_the_adaptation(tiny: CausalLM) -> None:
    _, kept = adapted(tiny, adapt=ON_EVIDENCE.updated(optimizer={"learning_rate": 0.05}))
    asked = question(kept, QUERIES[0], SAMPLING, context="document+passages", evidence=FINE)
    expected = answered(tiny, asked)
    chat = CompletionRequest(
        (Conversation((Message("user", QUERIES[0]),)),),
        SAMPLING,
        document=kept.document,
        context="document+passages",
        evidence=FINE,
        kept=kept,
        owner="ada",
    )
    events = list(perform(tiny, chat))
    said = "".join(event.text for event in events if isinstance(event, CompletionDelta))
    assert said == expected.answer
    last = events[-1]
    assert isinstance(last, CompletionEnded)
    assert last.prompt_tokens == expected.usage.query_tokens


def test_nothing_of_use_leaves_the_base_model(tiny: CausalLM) -> None:
    _, kept = adapted(tiny, document="It rains.", queries=("Does it rain?",))
    assert kept.fast_weights.is_base
    assert not kept.report.adapted
    again = restore(*dump(kept), torch.device("cpu"))
    assert again.fast_weights.is_base
    none = ON_EVIDENCE.updated(objective="none")
    _, unadapted = adapted(tiny, queries=(), evidence=None, adapt=none)
    assert unadapted.citations == ()
    assert unadapted.fast_weights.is_base
