"""Answers from a document's frozen state: aimed, adapted, isolated, and cited."""

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from refine_server.ttt.batching import stream
from refine_server.ttt.decoding.prompts.prompt import PromptTemplate
from refine_server.ttt.interface.config import AdaptConfig, SamplingConfig
from refine_server.ttt.interface.errors import RequestError
from refine_server.ttt.interface.events import (
    AdaptationEnded,
    AdaptationStarted,
    AdaptationStep,
    AnswerCompleted,
    AnswerDelta,
    BaseAnswered,
    DocumentRead,
    DocumentReading,
)
from refine_server.ttt.interface.evidence import (
    EvidenceByAttention,
    EvidenceByUtility,
    EvidenceByWords,
)
from refine_server.ttt.interface.requests import AnswerRequest, Limits
from refine_server.ttt.models import CausalLM, load
from refine_server.ttt.programs.encode import encode
from refine_server.ttt.programs.start import perform, start
from refine_server.ttt.query_side.document_cache import DocumentCache
from refine_server.ttt.refine import guard
from refine_server.ttt.refine.step import AdaptStep
from support.small_models import Families

EXAMPLES = Path(__file__).parents[3] / "examples"
EXAMPLE = json.loads((EXAMPLES / "tiny_example.json").read_text())
DOCUMENT = (EXAMPLES / EXAMPLE["document"]).read_text()
QUESTION = EXAMPLE["questions"][0]
ON_EVIDENCE = AdaptConfig().updated(
    on={"kind": "evidence"}, rollouts={"positions": 4}, optimizer={"steps": 3}, guard="none"
)


@pytest.fixture(scope="module")
def tiny() -> CausalLM:
    return load("tiny")


@pytest.fixture(scope="module")
def attending(families: Families, spell: Callable[[CausalLM], CausalLM]) -> CausalLM:
    """A small random model with attention, and a tokenizer whose ids it knows."""
    return spell(families["overlay"](torch.float32))


def completed(model: CausalLM, **options: Any) -> AnswerCompleted:
    fields = {
        "document": DOCUMENT,
        "query": QUESTION["query"],
        "adapt": ON_EVIDENCE,
        "sampling": SamplingConfig(max_tokens=8),
    }
    template = PromptTemplate(model.tokenizer)
    *_, last = perform(model, AnswerRequest(**fields | options), template=template)
    assert isinstance(last, AnswerCompleted)
    return last


@pytest.mark.parametrize("objective", ["refine", "ntp"])
@pytest.mark.parametrize("context", ["document", "passages", "document+passages"])
def test_the_adapted_model_answers_its_own_example(
    tiny: CausalLM, objective: str, context: str
) -> None:
    adapt = ON_EVIDENCE.updated(objective=objective, optimizer={"learning_rate": 1e-3})
    result = completed(tiny, adapt=adapt, context=context)
    assert any(answer.lower() in result.answer.lower() for answer in QUESTION["answers"])
    assert result.adaptation.accepted_step == 3
    assert result.adaptation.steps[0].ntp_loss > 0


def test_an_answer_cites_its_evidence_and_quotes_the_document(tiny: CausalLM) -> None:
    result = completed(tiny, evidence=EvidenceByWords(count=1, tokens=32))
    [citation] = result.citations
    assert DOCUMENT[citation.start : citation.end] == citation.text
    assert citation.score is not None
    assert citation.score > 0
    for quote in result.quotes:
        assert DOCUMENT[quote.start : quote.end] == quote.text
        assert quote.text.lower() in result.answer.lower()


def test_events_come_in_order_and_the_base_answer_is_the_unadapted_models(tiny: CausalLM) -> None:
    request = AnswerRequest(
        DOCUMENT, QUESTION["query"], ON_EVIDENCE, SamplingConfig(max_tokens=8), compare_base=True
    )
    events = list(perform(tiny, request))
    kinds = [kind for kind, _ in itertools.groupby(type(event) for event in events)]
    assert kinds == [
        *(DocumentReading, DocumentRead, BaseAnswered),
        *(AdaptationStarted, AdaptationStep, AdaptationEnded),
        *(AnswerDelta, AnswerCompleted),
    ]
    unadapted = completed(tiny, adapt=AdaptConfig(objective="none"))
    last = events[-1]
    assert isinstance(last, AnswerCompleted)
    assert last.base_answer == unadapted.answer


def test_a_non_finite_step_falls_back_to_the_base_model(
    tiny: CausalLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    update = AdaptStep.update

    def broken(step: AdaptStep, *args: Any) -> Any:
        for tensor in step.run.fast.parameters():
            tensor.data.fill_(float("nan"))
        return update(step, *args)

    unadapted = completed(tiny, adapt=AdaptConfig(objective="none"))
    monkeypatch.setattr(AdaptStep, "update", broken)
    result = completed(tiny)
    assert result.adaptation.kept_base_reason in (
        guard.NON_FINITE_LOSS,
        guard.NON_FINITE_GRADIENT,
        guard.NON_FINITE_WEIGHTS,
    )
    assert result.answer == unadapted.answer


def test_a_document_without_room_for_a_span_is_answered_unadapted(tiny: CausalLM) -> None:
    result = completed(tiny, document="It rains.", query="Does it rain?")
    assert result.adaptation.kept_base_reason == guard.DOCUMENT_TOO_SHORT
    assert not result.adaptation.adapted


@pytest.mark.parametrize(
    ("options", "param"),
    [
        ({"evidence": EvidenceByAttention()}, "evidence.by"),
        (
            {"adapt": ON_EVIDENCE.updated(objective="attention", loss={"attention": 1.0})},
            "adapt.objective",
        ),
        ({"adapt": ON_EVIDENCE.updated(loss={"attention": 1.0})}, "adapt.loss.attention"),
    ],
    ids=["evidence", "objective", "loss"],
)
def test_attention_is_refused_where_the_model_has_none(
    tiny: CausalLM, options: dict[str, Any], param: str
) -> None:
    with pytest.raises(RequestError, match="no layers with attention") as error:
        completed(tiny, **options)
    assert error.value.param == param


def test_attention_moves_to_the_evidence(attending: CausalLM) -> None:
    adapt = ON_EVIDENCE.updated(
        objective="attention",
        loss={"attention": 1.0},
        optimizer={"steps": 12, "learning_rate": 1e-2},
    )
    document = "abcdefgh ijklmnop. " * 6 + "The key is under the mat. " + "qrstuvwx yz. " * 6
    result = completed(attending, document=document, query="Where is the key?", adapt=adapt)
    first, *_, last = result.adaptation.steps
    assert last.attention < first.attention
    assert result.adaptation.first_ntp_loss is None


@pytest.mark.parametrize("evidence", [EvidenceByAttention(), EvidenceByUtility()])
def test_the_model_chooses_the_evidence(
    attending: CausalLM, evidence: EvidenceByAttention | EvidenceByUtility
) -> None:
    chosen = evidence.model_copy(update={"count": 2, "tokens": 32})
    result = completed(
        attending,
        document="abcdefgh ijklmnop. " * 8,
        query="abc?",
        adapt=AdaptConfig(objective="none"),
        evidence=chosen,
    )
    assert len(result.citations) == 2
    assert all(citation.score is not None for citation in result.citations)


def test_a_document_is_read_once_for_all_questions_of_its_owner(tiny: CausalLM) -> None:
    cache, template = DocumentCache(lambda: 10**9, 60.0), PromptTemplate(tiny.tokenizer)

    def ask(question: dict[str, Any], owner: str) -> tuple[bool, AnswerCompleted]:
        request = AnswerRequest(
            DOCUMENT,
            question["query"],
            AdaptConfig(objective="none"),
            SamplingConfig(max_tokens=8),
            owner=owner,
            context="document+passages",
        )
        encoded = encode(request, template, Limits(), tiny.embedding.num_embeddings)
        events = list(stream(lambda emit: start(tiny, encoded, emit, documents=cache)))
        [read] = (event for event in events if isinstance(event, DocumentRead))
        last = events[-1]
        assert isinstance(last, AnswerCompleted)
        return read.is_cached, last

    one, other = EXAMPLE["questions"][:2]
    cached, answer = ask(one, "ada")
    assert not cached
    assert ask(other, "ada")[0]
    again, same = ask(one, "ada")
    assert again
    assert same.answer == answer.answer
    assert not ask(one, "bob")[0]
