"""Spans by their similarity to a query."""

import pytest
import torch

from refine_server.ttt.fast_weights import BASE
from refine_server.ttt.interface.config import AdaptConfig
from refine_server.ttt.models import load
from refine_server.ttt.models.bundled import tiny
from refine_server.ttt.refine.rows import Asked, Reading, informative_spans
from refine_server.ttt.refine.spans import similar_spans, whole_sentences

FILLER = "The old man walked along the path. It rained until late. The dogs barked at the moon. "


@pytest.fixture(scope="module")
def tokenizer():
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tiny())


def spans(tokenizer, text: str, query: str, count: int = 4, length: int = 12) -> list[str]:
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    starts = similar_spans(ids, query, tokenizer, count=count, length=length)
    assert all(abs(a - b) >= length for n, a in enumerate(starts) for b in starts[:n])
    assert all(0 <= start <= len(ids) - length for start in starts)
    return [tokenizer.decode(ids[start : start + length]) for start in starts]


def test_what_is_asked_about_comes_first_and_as_a_sentence(tokenizer) -> None:
    text = FILLER * 5 + "The harbour code is amber. " + FILLER * 7
    [found, *_] = spans(tokenizer, text, "What is the harbour code?")
    assert "The harbour code is amber" in found
    assert found.strip().startswith("The ")


def test_a_span_reaches_beyond_the_words_in_common(tokenizer) -> None:
    text = FILLER * 5 + "The old man said that the code of the harbour gate is amber. " + FILLER * 7
    [found, *_] = spans(tokenizer, text, "What is the code of the harbour gate?")
    assert "code of the harbour gate is amber" in found


@pytest.mark.parametrize(
    ("before", "text", "after", "kept"),
    [
        (
            "It rained.",
            " late. The harbour code is amber. The",
            " dogs barked.",
            "The harbour code is amber.",
        ),
        (
            "It rained.",
            " The harbour code is amber.",
            " The dogs barked.",
            "The harbour code is amber.",
        ),
        ("The harbour", " code is amber and the garden code is", " coral.", None),
        ("It rained.", " The harbour code is amber", "", "The harbour code is amber"),
    ],
)
def test_a_span_is_cut_to_whole_sentences(tokenizer, before, text, after, kept) -> None:
    parts = [tokenizer(p, add_special_tokens=False)["input_ids"] for p in (before, text, after)]
    ids, start = [*parts[0], *parts[1], *parts[2]], len(parts[0])
    first, last = whole_sentences(ids, start, start + len(parts[1]), tokenizer)
    assert tokenizer.decode(ids[first:last]).strip() == (kept or text.strip())


def test_text_about_something_else_is_left_out(tokenizer) -> None:
    facts = "The harbour code is amber. ", "The garden code is coral. ", "The tower code is ivory. "
    text = FILLER * 3 + facts[0] + FILLER * 4 + facts[1] + FILLER * 3 + facts[2] + FILLER
    assert len(spans(tokenizer, text, "What is the garden code?")) == 1
    both = spans(tokenizer, text, "What are the garden and harbour codes?")
    assert {next(w for w in ("harbour", "garden") if w in s) for s in both} == {"harbour", "garden"}
    assert len(spans(tokenizer, text, "the garden and harbour codes", count=1)) == 1


@pytest.mark.parametrize("query", ["zebra", "?", "the"])
def test_nothing_is_chosen_when_no_word_occurs(tokenizer, query) -> None:
    assert spans(tokenizer, FILLER * 4, query) == []


@pytest.mark.parametrize("length", [12, 21])
def test_a_document_of_one_span(tokenizer, length) -> None:
    ids = tokenizer(FILLER, add_special_tokens=False)["input_ids"][:length]
    query = "Where did the old man go?"
    assert similar_spans(ids, query, tokenizer, count=3, length=length) == [0]


def test_an_answer_is_learned_in_the_documents_order() -> None:
    model = load("tiny")
    facts = "The harbour code is amber. ", "The harbour code is coral. "
    text = FILLER * 2 + facts[0] + FILLER * 3 + facts[1] + FILLER * 2
    ids = model.tokenizer(text, add_special_tokens=False)["input_ids"]
    document = Reading(model, torch.tensor([ids]), BASE)
    found = {}
    for spans_as in ("text", "answer"):
        config = AdaptConfig(
            prefix="local", selection="query", spans_as=spans_as, span_tokens=12, guard="none"
        )
        asked = Asked("What are the harbour codes? The harbour code", [], [])
        spans = informative_spans(document, config, torch.Generator(), asked)
        found[spans_as] = [model.tokenizer.decode(ids[start:end]).strip() for start, end in spans]
    for order, told in (("text", facts[::-1]), ("answer", facts)):
        assert all(f.strip() in span for f, span in zip(told, found[order], strict=True))
