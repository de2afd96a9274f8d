"""The best of three answers is the one that the evidence alone makes likeliest."""

import random
from typing import Any

import pytest
import torch

from refine_server.ttt.decoding.prompts.prompt import PromptTemplate
from refine_server.ttt.fast_weights import BASE
from refine_server.ttt.interface.config import AdaptConfig, SamplingConfig
from refine_server.ttt.interface.events import AnswerCompleted, AnswerDelta, Event
from refine_server.ttt.interface.requests import AnswerRequest, Limits
from refine_server.ttt.models import CausalLM, load
from refine_server.ttt.programs import best_answer
from refine_server.ttt.programs.best_answer import log_likelihood
from refine_server.ttt.programs.encode import EncodedAnswer, encode
from refine_server.ttt.programs.start import perform
from refine_server.ttt.training import corpus
from support.small_models import MakeModel, Tokens

RANDOM = random.Random(1)
FACTS = corpus.make_facts(RANDOM, 40, twins=0.5)
DOCUMENT = corpus.make_document(RANDOM, FACTS, 2500).text
"""A long document of facts that are easily confused: what is read before a query matters."""
QUERIES = [question.query for question in corpus.make_questions(RANDOM, FACTS, 8)]
UNADAPTED = AdaptConfig(objective="none")
WAYS = ("document", "document+passages", "passages")


@pytest.fixture(scope="module")
def tiny() -> CausalLM:
    return load("tiny")


def request(query: str, context: Any, **options: Any) -> AnswerRequest:
    fields = {"adapt": UNADAPTED, "sampling": SamplingConfig(max_tokens=8)} | options
    return AnswerRequest(**{"document": DOCUMENT, "query": query, "context": context} | fields)


def events(model: CausalLM, query: str, context: Any, **options: Any) -> list[Event]:
    return list(perform(model, request(query, context, **options)))


def completed(model: CausalLM, query: str, context: Any, **options: Any) -> AnswerCompleted:
    last = events(model, query, context, **options)[-1]
    assert isinstance(last, AnswerCompleted)
    return last


def answers_to(model: CausalLM, query: str) -> dict[str, str]:
    return {way: completed(model, query, way).answer for way in WAYS}


def test_the_ways_differ(tiny: CausalLM) -> None:
    """Or the tests below would show nothing."""
    assert sum(len(set(answers_to(tiny, query).values())) > 1 for query in QUERIES) >= 2


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-3)])
@pytest.mark.parametrize("length", [1, 5])
def test_the_likelihood_is_the_sum_of_what_the_model_gives_each_token(
    make_model: MakeModel, tokens: Tokens, dtype: torch.dtype, tolerance: float, length: int
) -> None:
    model = make_model(dtype)
    state = model(tokens(1, 21)).state
    query, answer = tokens(1, 4, seed=1)[0].tolist(), tokens(1, length, seed=2)[0].tolist()
    expected = 0.0
    for n, token in enumerate(answer):
        output = model(torch.tensor([query + answer[:n]]), state)
        logits = model.head_logits(output.hidden[:, -1], BASE)
        expected += float(logits[0].log_softmax(-1)[token])
    assert log_likelihood(model, state, query, answer) == pytest.approx(expected, abs=tolerance)
    assert log_likelihood(model, state, query, []) == 0.0


@pytest.mark.parametrize("query", QUERIES)
def test_the_best_answer_is_the_one_that_the_evidence_makes_likeliest(
    tiny: CausalLM, query: str
) -> None:
    answers = answers_to(tiny, query)
    best = completed(tiny, query, "best")
    assert answers[best.context] == best.answer
    work = encode(
        request(query, "best"),
        PromptTemplate(tiny.tokenizer),
        Limits(),
        tiny.embedding.num_embeddings,
    )
    assert isinstance(work, EncodedAnswer)
    check = work.context.check
    assert check is not None
    state = tiny(torch.tensor([check.prompt.header + check.prompt.document])).state
    ids = {c: tiny.tokenizer.encode(text) for c, text in answers.items()}
    ended = {c: [*own, tiny.tokenizer.eos_token_id] for c, own in ids.items()}
    likely = {
        c: log_likelihood(tiny, state, check.query_after_evidence, own) for c, own in ended.items()
    }
    assert likely[best.context] == max(likely.values())


def test_only_the_best_answer_is_streamed(tiny: CausalLM) -> None:
    *before, last = events(tiny, QUERIES[0], "best")
    assert isinstance(last, AnswerCompleted)
    deltas = [event.text for event in before if isinstance(event, AnswerDelta)]
    assert "".join(deltas) == last.answer
    assert len(deltas) == last.usage.completion_tokens


def test_an_empty_answer_is_never_the_best(tiny: CausalLM, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is likelier than nothing, so likelihood alone would choose it."""
    query, stop = next(
        (query, answer.strip())
        for query in QUERIES
        for answers in [list(answers_to(tiny, query).values())]
        for answer in answers
        if any(answer.strip() not in other for other in answers)
    )
    sampling = SamplingConfig(max_tokens=8, stop=(stop,))
    emptied = [c for c in WAYS if not completed(tiny, query, c, sampling=sampling).answer.strip()]
    assert 0 < len(emptied) < len(WAYS)
    monkeypatch.setattr(best_answer, "log_likelihood", lambda m, s, q, ids: -float(len(ids)))
    best = completed(tiny, query, "best", sampling=sampling)
    assert best.answer.strip()
    assert best.context not in emptied


def test_there_is_one_answer_where_the_evidence_is_the_whole_document(tiny: CausalLM) -> None:
    document = "The code of room 7 is 4431."
    work = encode(
        request(QUERIES[0], "best", document=document),
        PromptTemplate(tiny.tokenizer),
        Limits(),
        tiny.embedding.num_embeddings,
    )
    assert isinstance(work, EncodedAnswer)
    assert work.context.check is None
    best = completed(tiny, QUERIES[0], "best", document=document)
    plain = completed(tiny, QUERIES[0], "document", document=document)
    assert (best.answer, best.context) == (plain.answer, "document")


@pytest.mark.parametrize(
    "adapt",
    [
        AdaptConfig().updated(optimizer={"steps": 1}, guard="none"),
        AdaptConfig().updated(on={"kind": "evidence"}, optimizer={"steps": 1}, guard="none"),
    ],
    ids=["document", "evidence"],
)
def test_the_answers_are_the_adapted_models(tiny: CausalLM, adapt: AdaptConfig) -> None:
    best = completed(tiny, QUERIES[0], "best", adapt=adapt)
    same = completed(tiny, QUERIES[0], best.context, adapt=adapt)
    assert best.adaptation.accepted_step == 1
    if adapt.on.kind == "document":  # an evidence step is aimed by the query that it is behind
        assert best.answer == same.answer
