"""What is read of a document before a query, and what an adaptation is aimed at."""

import pytest

from refine_server.ttt.decoding.prompts.prompt import PromptTemplate
from refine_server.ttt.evidence.alignment import align
from refine_server.ttt.evidence.context import Context
from refine_server.ttt.interface.config import AdaptConfig
from refine_server.ttt.interface.errors import RequestError
from refine_server.ttt.interface.evidence import (
    DocumentSpan,
    EvidenceByAttention,
    EvidenceByWords,
    EvidenceSpans,
)
from refine_server.ttt.interface.requests import AnswerRequest, Limits
from refine_server.ttt.models import CausalLM
from refine_server.ttt.programs.encode import EncodedAnswer, encode

PARTS = (
    "The keeper writes the weather into a blue book.",
    "The ferry waits for the harbour master.",
    "The lantern is lit by the boy at nine.",
    "The bakery sells rye bread on Mondays.",
)
DOCUMENT = "\n\n".join(PARTS)
QUERY = "When does the bakery sell rye bread?"
FINE = EvidenceByWords(count=1, tokens=16)
ON_EVIDENCE = AdaptConfig(on={"kind": "evidence"})  # type: ignore[arg-type]


def encoded(model: CausalLM, query: str = QUERY, **options: object) -> Context:
    request = AnswerRequest(DOCUMENT, query, **options)  # type: ignore[arg-type]
    work = encode(request, PromptTemplate(model.tokenizer), Limits(), 2560)
    assert isinstance(work, EncodedAnswer)
    return work.context


def text(model: CausalLM, ids: list[int]) -> str:
    return str(model.tokenizer.decode(ids))


def cited(context: Context) -> list[str]:
    assert context.candidates is not None
    citations = context.candidates.citations()
    for citation in citations:
        assert citation.text == DOCUMENT[citation.start : citation.end]
    return [citation.text.strip() for citation in citations]


def test_the_document_alone_needs_no_evidence(tiny: CausalLM) -> None:
    context = encoded(tiny)
    assert text(tiny, context.prompt.document) in DOCUMENT
    assert context.candidates is None
    assert context.aim == ()


def test_passages_stand_in_for_the_document(tiny: CausalLM) -> None:
    context = encoded(tiny, context="passages", evidence=FINE)
    assert cited(context) == [PARTS[3]]
    read = text(tiny, context.prompt.header + context.prompt.document + context.query)
    assert PARTS[3] in read
    assert "ferry" not in read


def test_passages_are_repeated_between_document_and_query(tiny: CausalLM) -> None:
    context = encoded(tiny, context="document+passages", evidence=FINE)
    read = text(tiny, context.prompt.header + context.prompt.document + context.query)
    assert read.count(PARTS[3]) == 2
    assert read.index(QUERY) > read.rindex(PARTS[3])
    assert read.startswith(DOCUMENT[:40])


def test_passages_keep_the_documents_order(tiny: CausalLM) -> None:
    query = "Which bread, and what does the ferry wait for?"
    evidence = EvidenceByWords(count=2, tokens=16)
    context = encoded(tiny, query, context="passages", evidence=evidence)
    assert cited(context) == [PARTS[1], PARTS[3]]


def test_a_chunk_without_a_word_of_the_query_is_no_evidence(tiny: CausalLM) -> None:
    evidence = EvidenceByWords(count=4, tokens=16)
    assert cited(encoded(tiny, context="passages", evidence=evidence)) == [PARTS[3]]


def test_a_query_without_a_word_of_the_document_gets_its_beginning(tiny: CausalLM) -> None:
    context = encoded(tiny, "zebra?", context="passages", evidence=FINE)
    assert cited(context) == [PARTS[0]]


def test_words_to_search_by_can_be_others_than_the_querys(tiny: CausalLM) -> None:
    evidence = EvidenceByWords(count=1, tokens=16, words="lantern")
    assert cited(encoded(tiny, context="passages", evidence=evidence)) == [PARTS[2]]


def test_an_adaptation_is_aimed_at_the_evidence_in_the_document(tiny: CausalLM) -> None:
    context = encoded(tiny, adapt=ON_EVIDENCE, evidence=FINE)
    [(start, end)] = context.aim
    assert text(tiny, context.prompt.document[start:end]).strip() in PARTS[3]
    assert end - start > 4


def test_behind_passages_it_is_aimed_at_the_best_of_them(tiny: CausalLM) -> None:
    evidence = EvidenceByWords(count=4, tokens=16)
    query = "Which rye bread does the bakery sell: to the keeper, on the ferry, by the lantern?"
    context = encoded(tiny, query, context="passages", adapt=ON_EVIDENCE, evidence=evidence)
    assert len(cited(context)) == 4
    [(start, end)] = context.aim
    assert text(tiny, context.prompt.document[start:end]).strip() in PARTS[3]


def test_the_client_names_the_evidence(tiny: CausalLM) -> None:
    places = [DOCUMENT.index(part) for part in (PARTS[2], PARTS[0])]
    spans = tuple(DocumentSpan(start=p, end=p + 10) for p in places)
    context = encoded(tiny, context="passages", evidence=EvidenceSpans(spans=spans))
    assert cited(context) == [PARTS[0][:10].strip(), PARTS[2][:10].strip()]


def test_what_the_client_names_is_repeated_too(tiny: CausalLM) -> None:
    start = DOCUMENT.index(PARTS[2])
    spans = (DocumentSpan(start=start, end=start + len(PARTS[2])),)
    context = encoded(tiny, context="document+passages", evidence=EvidenceSpans(spans=spans))
    read = text(tiny, context.prompt.header + context.prompt.document + context.query)
    assert read.count(PARTS[2]) == 2


def test_evidence_that_is_the_whole_document_is_not_repeated(tiny: CausalLM) -> None:
    evidence = EvidenceByWords(count=1, tokens=1024)
    context = encoded(tiny, context="document+passages", evidence=evidence)
    read = text(tiny, context.prompt.header + context.prompt.document + context.query)
    assert read.count(PARTS[3]) == 1
    assert cited(context) == [DOCUMENT]


@pytest.mark.parametrize(
    ("start", "end"), [(5, 5), (9, 3), (0, len(DOCUMENT) + 1), (len(PARTS[0]), len(PARTS[0]) + 2)]
)
def test_a_span_without_text_is_refused_by_name(tiny: CausalLM, start: int, end: int) -> None:
    spans = (DocumentSpan(start=0, end=4), DocumentSpan(start=start, end=end))
    with pytest.raises(RequestError, match="is no text of the document") as error:
        encoded(tiny, context="passages", evidence=EvidenceSpans(spans=spans))
    assert error.value.param == "evidence.spans.1"


@pytest.mark.parametrize("context", ["passages", "document+passages"])
def test_passages_that_the_model_would_choose_are_refused(tiny: CausalLM, context: str) -> None:
    with pytest.raises(RequestError, match="needs the context to be document") as error:
        encoded(tiny, context=context, adapt=ON_EVIDENCE, evidence=EvidenceByAttention())
    assert error.value.param == "evidence.by"


@pytest.mark.parametrize(
    ("own", "other", "places"),
    [
        ([1, 2, 3, 4], [1, 2, 3, 4], [0, 1, 2, 3, 4]),
        ([1, 2, 3, 4], [1, 2, 3], [0, 1, 2, 3, 3]),
        ([1, 2, 3, 4], [9, 2, 3, 4], [0, 1, 2, 3, 4]),
        ([1, 2, 3, 4], [1, 7, 8, 9, 4], [0, 1, 2, 4, 5]),
        ([1], [2], [0, 1]),
    ],
)
def test_places_between_tokens_are_found_in_another_encoding(
    own: list[int], other: list[int], places: list[int]
) -> None:
    place = align(own, other)
    assert [min(place(at), len(other)) for at in range(len(own) + 1)] == places
