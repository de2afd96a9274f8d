"""The guard of an adaptation on evidence: the base weights answer too, and may be right."""

import random
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from refine_server.ttt.batching import run
from refine_server.ttt.decoding.prompts.prompt import PromptTemplate
from refine_server.ttt.interface.config import AdaptConfig, SamplingConfig
from refine_server.ttt.interface.events import (
    AdaptationEnded,
    AnswerCompleted,
    AnswerDelta,
    BaseAnswered,
    DocumentAdapted,
    Event,
)
from refine_server.ttt.interface.evidence import EvidenceByWords
from refine_server.ttt.interface.requests import AdaptRequest, AnswerRequest, Limits
from refine_server.ttt.models import CausalLM, load
from refine_server.ttt.programs import best_answer
from refine_server.ttt.programs.best_answer import EvidenceAlone, log_likelihood, read_alone
from refine_server.ttt.programs.encode import EncodedAnswer, encode
from refine_server.ttt.programs.frozen import find_evidence
from refine_server.ttt.programs.start import perform
from refine_server.ttt.query_side.frozen_document import FrozenDocument
from refine_server.ttt.query_side.query_adaptation import QueryAdaptation
from refine_server.ttt.training import corpus

RANDOM = random.Random(1)
FACTS = corpus.make_facts(RANDOM, 24, twins=0.5)
DOCUMENT = corpus.make_document(RANDOM, FACTS, 900).text
QUERIES = [question.query for question in corpus.make_questions(RANDOM, FACTS, 4)]
GUARDED = AdaptConfig().updated(
    objective="ntp",
    on={"kind": "evidence"},
    optimizer={"steps": 2, "learning_rate": 0.3},  # so much that answers change
    rollouts={"positions": 4},
)
UNGUARDED = GUARDED.updated(guard="none")
UNADAPTED = AdaptConfig(objective="none")


@pytest.fixture(scope="module")
def tiny() -> CausalLM:
    return load("tiny")


def request(query: str, adapt: AdaptConfig, **options: Any) -> AnswerRequest:
    fields = {"adapt": adapt, "sampling": SamplingConfig(max_tokens=6)} | options
    return AnswerRequest(**{"document": DOCUMENT, "query": query} | fields)


def events(model: CausalLM, query: str, adapt: AdaptConfig, **options: Any) -> list[Event]:
    return list(perform(model, request(query, adapt, **options)))


def completed(model: CausalLM, query: str, adapt: AdaptConfig, **options: Any) -> AnswerCompleted:
    last = events(model, query, adapt, **options)[-1]
    assert isinstance(last, AnswerCompleted)
    return last


def alone_of(model: CausalLM, asked: AnswerRequest) -> EvidenceAlone:
    """Read the evidence alone as the program does."""
    template = PromptTemplate(model.tokenizer)
    work = encode(asked, template, Limits(), model.embedding.num_embeddings)
    assert isinstance(work, EncodedAnswer)
    prompt = work.prompt
    ids = torch.tensor([prompt.header + prompt.document])  # [1, T]
    document = FrozenDocument.read(model, ids, len(prompt.header))

    async def read() -> EvidenceAlone | None:
        _, aim = await find_evidence(document, work.context, asked.evidence)
        return await read_alone(document, work, aim)

    found = run(read())
    assert found is not None
    return found


def test_the_guard_is_the_default_of_an_adaptation_on_evidence_and_of_no_other() -> None:
    assert GUARDED.guard == "answer"
    assert GUARDED.updated(on={"kind": "document"}).guard == "held_out"
    assert AdaptConfig().guard == "held_out"


@pytest.mark.parametrize(
    "settings",
    [
        {"guard": "answer"},
        {"guard": "answer", "on": {"kind": "spans"}},
        {"guard": "held_out", "on": {"kind": "evidence"}},
    ],
)
def test_a_guard_that_has_nothing_to_judge_is_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="guard"):
        AdaptConfig.model_validate(settings)


def test_the_adaptation_changes_answers(tiny: CausalLM) -> None:
    """Or the tests below would show nothing."""
    changed = [
        completed(tiny, query, UNGUARDED).answer != completed(tiny, query, UNADAPTED).answer
        for query in QUERIES
    ]
    assert sum(changed) >= 1


@pytest.mark.parametrize("query", QUERIES)
@pytest.mark.parametrize("context", ["document", "passages", "document+passages"])
def test_of_two_answers_the_one_that_the_evidence_makes_likelier_is_given(
    tiny: CausalLM, query: str, context: str
) -> None:
    own = {"context": context, "evidence": EvidenceByWords()}
    base = completed(tiny, query, UNADAPTED, **own)
    adapted = completed(tiny, query, UNGUARDED, **own)
    guarded = completed(tiny, query, GUARDED, **own)
    alone = alone_of(tiny, request(query, GUARDED, **own))
    end = tiny.tokenizer.eos_token_id

    def likelihood(answer: str) -> float:
        ids = [*tiny.tokenizer.encode(answer), end]
        return log_likelihood(tiny, alone.state, alone.query, ids)

    is_base = likelihood(base.answer) >= likelihood(adapted.answer)
    assert guarded.answer == (base if is_base else adapted).answer
    assert guarded.adaptation.adapted is not is_base
    assert len(guarded.adaptation.steps) == 2


def test_the_answer_of_the_base_weights_is_reported_as_such(
    tiny: CausalLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(best_answer, "log_likelihood", lambda *_: 0.0)
    *before, last = events(tiny, QUERIES[0], GUARDED, compare_base=True)
    assert isinstance(last, AnswerCompleted)
    report = last.adaptation
    assert (report.accepted_step, report.kept_base_reason, report.fast_weight_bytes) == (
        0,
        "no_better_step",
        0,
    )
    assert report.final_ntp_loss == report.first_ntp_loss
    assert last.answer == last.base_answer == completed(tiny, QUERIES[0], UNADAPTED).answer
    [ended] = [event for event in before if isinstance(event, AdaptationEnded)]
    assert ended.report.accepted_step == 2, "what the steps made is told as well"


def test_only_the_answer_that_is_given_is_streamed(tiny: CausalLM) -> None:
    for query in QUERIES:
        *before, last = events(tiny, query, GUARDED)
        assert isinstance(last, AnswerCompleted)
        deltas = [event.text for event in before if isinstance(event, AnswerDelta)]
        assert "".join(deltas) == last.answer
        assert len(deltas) == last.usage.completion_tokens


def test_a_base_answer_that_was_asked_for_is_decoded_once(
    tiny: CausalLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded = []

    def count(*args: Any, **options: Any) -> Any:
        decoded.append(args)
        return decode(*args, **options)

    decode = best_answer.decode
    monkeypatch.setattr(best_answer, "decode", count)
    for compare_base in (False, True):
        decoded.clear()
        before = events(tiny, QUERIES[0], GUARDED, compare_base=compare_base)
        assert len(decoded) == 2
        assert any(isinstance(event, BaseAnswered) for event in before) is compare_base


def test_the_best_answer_is_one_of_six_where_the_adaptation_is_guarded(
    tiny: CausalLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    judged: list[tuple[int, ...]] = []

    def judge(model: CausalLM, state: Any, query: Any, ids: tuple[int, ...]) -> float:
        judged.append(ids)
        return log_likelihood(model, state, query, ids)

    monkeypatch.setattr(best_answer, "log_likelihood", judge)
    best = completed(tiny, QUERIES[0], GUARDED, context="best")
    assert len(judged) == 6
    answers = {tiny.tokenizer.decode(ids, skip_special_tokens=True).strip() for ids in judged}
    assert best.answer.strip() in answers


def test_what_adapts_nothing_is_not_judged(tiny: CausalLM, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(best_answer, "log_likelihood", None)
    assert completed(tiny, QUERIES[0], GUARDED.updated(objective="none")).answer


@pytest.mark.parametrize("adapt", [GUARDED, UNGUARDED])
def test_a_kept_adaptation_is_guarded_as_it_was_made(
    tiny: CausalLM, adapt: AdaptConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = AdaptRequest(document=DOCUMENT, queries=(QUERIES[0],), adapt=adapt)
    *_, last = perform(tiny, made)
    assert isinstance(last, DocumentAdapted)
    assert isinstance(last.document, QueryAdaptation)
    data, description = last.document.dump()
    kept = QueryAdaptation.restore(data, description, torch.device("cpu"))
    base = completed(tiny, QUERIES[0], UNADAPTED)
    monkeypatch.setattr(best_answer, "log_likelihood", lambda *_: 0.0)  # equals: the base's
    answer = completed(tiny, QUERIES[0], UNADAPTED, kept=kept)
    if adapt.guard == "answer":
        assert (answer.answer, answer.adaptation.kept_base_reason) == (
            base.answer,
            "no_better_step",
        )
    else:
        assert (answer.adaptation.kept_base_reason, answer.adaptation.accepted_step) == (None, 2)
    assert kept.report.accepted_step == 2, "the adaptation itself stays as it was"
