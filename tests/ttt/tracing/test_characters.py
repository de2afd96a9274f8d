"""Tokens that are read of a document, by their characters in the client's document."""

import pytest

from refine_server.ttt.decoding.prompts.prompt import PromptTemplate
from refine_server.ttt.interface.config import AdaptConfig
from refine_server.ttt.interface.requests import AdaptRequest, AnswerRequest, Limits
from refine_server.ttt.models import CausalLM, load
from refine_server.ttt.programs.encode import EncodedAnswer, encode
from refine_server.ttt.programs.encode_adaptation import EncodedAdapt
from refine_server.ttt.tracing.characters import Characters

DOCUMENT = "The harbour code is amber. " * 20 + "Zoë keeps the key — it is brass. " + "Rain. " * 40
TRACED = AdaptConfig(trace=True)


@pytest.fixture(scope="module")
def tiny() -> CausalLM:
    return load("tiny")


def encoded(model: CausalLM, limits: Limits | None = None, **options: object) -> EncodedAnswer:
    request = AnswerRequest(DOCUMENT, "Who keeps the key?", TRACED, **options)  # type: ignore[arg-type]
    vocabulary = model.embedding.num_embeddings
    result = encode(request, PromptTemplate(model.tokenizer), limits or Limits(), vocabulary)
    assert isinstance(result, EncodedAnswer)
    return result


def texts(characters: Characters) -> list[str]:
    pairs = zip(characters.starts, characters.ends, strict=True)
    return [DOCUMENT[start:end] for start, end in pairs]


def decoded(model: CausalLM, work: EncodedAnswer) -> list[str]:
    return [model.tokenizer.decode([id]) for id in work.prompt.document]


def test_each_token_stands_for_its_own_characters(tiny: CausalLM) -> None:
    work = encoded(tiny)
    assert work.characters is not None
    for text, token in zip(texts(work.characters), decoded(tiny, work), strict=True):
        assert "\N{REPLACEMENT CHARACTER}" in token or text == token


@pytest.mark.parametrize("on_overflow", ["truncate_middle", "passages"])
def test_of_a_shortened_document_they_are_those_of_the_whole(
    tiny: CausalLM, on_overflow: str
) -> None:
    work = encoded(tiny, Limits(document_tokens=100), on_overflow=on_overflow)
    assert work.overflow is not None
    assert work.characters is not None
    starts = work.characters.starts
    assert list(starts) == sorted(starts)
    own = list(zip(texts(work.characters), decoded(tiny, work), strict=True))
    assert sum(text == token for text, token in own) >= len(own) - 6  # but at the seams
    assert starts[-1] > 500  # its end was read


def test_of_passages_they_are_those_of_the_whole(tiny: CausalLM) -> None:
    work = encoded(tiny, context="passages")
    assert work.characters is not None
    assert "keeps the key" in DOCUMENT[work.characters.starts[0] : work.characters.ends[-1]]


def test_without_a_trace_they_are_not_looked_for(tiny: CausalLM) -> None:
    template, vocabulary = PromptTemplate(tiny.tokenizer), tiny.embedding.num_embeddings
    work = encode(AdaptRequest(DOCUMENT), template, Limits(), vocabulary)
    assert isinstance(work, EncodedAdapt)
    assert work.characters is None


def test_a_span_beyond_the_document_ends_with_it() -> None:
    span = Characters(starts=(0, 3, 5), ends=(3, 5, 9)).span(1, 7)
    assert (span.start, span.end) == (3, 9)
