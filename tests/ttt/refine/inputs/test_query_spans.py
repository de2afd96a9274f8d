"""Query spans are found by the query's words and cut to whole sentences."""

from typing import Any

import pytest

from refine_server.ttt.models.bundled import tiny
from refine_server.ttt.refine.inputs.query_spans import similar_spans, whole_sentences

FILLER = "The old man walked along the path. It rained until late. The dogs barked at the moon. "


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tiny())


def spans(tokenizer: Any, text: str, query: str, count: int = 4, length: int = 12) -> list[str]:
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    starts = similar_spans(ids, query, tokenizer, count=count, length=length)
    assert all(abs(a - b) >= length for n, a in enumerate(starts) for b in starts[:n])
    assert all(0 <= start <= len(ids) - length for start in starts)
    return [tokenizer.decode(ids[start : start + length]) for start in starts]


def test_the_best_match_comes_first_as_a_whole_sentence(tokenizer: Any) -> None:
    text = FILLER * 5 + "The harbour code is amber. " + FILLER * 7
    [found, *_] = spans(tokenizer, text, "What is the harbour code?")
    assert "The harbour code is amber" in found
    assert found.strip().startswith("The ")


def test_a_span_reaches_beyond_the_words_in_common(tokenizer: Any) -> None:
    text = FILLER * 5 + "The old man said that the code of the harbour gate is amber. " + FILLER * 7
    [found, *_] = spans(tokenizer, text, "What is the code of the harbour gate?")
    assert "code of the harbour gate is amber" in found


@pytest.mark.parametrize(
    ("before", "text", "after", "kept"),
    [
        (
            "It rained until",
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
        (
            "It rained.",
            " The harbour code is amber. The old man walked along the path. The dogs",
            " barked.",
            "The harbour code is amber. The old man walked along the path.",
        ),
        ("The harbour", " code is amber and the garden code is", " coral.", None),
        ("It rained.", " The harbour code is amber", "", "The harbour code is amber"),
    ],
)
def test_a_span_is_cut_to_whole_sentences(
    tokenizer: Any, before: str, text: str, after: str, kept: str | None
) -> None:
    parts = [tokenizer(p, add_special_tokens=False)["input_ids"] for p in (before, text, after)]
    ids, start = [*parts[0], *parts[1], *parts[2]], len(parts[0])
    first, last = whole_sentences(ids, start, start + len(parts[1]), tokenizer)
    assert tokenizer.decode(ids[first:last]).strip() == (kept or text.strip())


def test_text_about_something_else_is_left_out(tokenizer: Any) -> None:
    facts = "The harbour code is amber. ", "The garden code is coral. ", "The tower code is ivory. "
    text = FILLER * 3 + facts[0] + FILLER * 4 + facts[1] + FILLER * 3 + facts[2] + FILLER
    assert len(spans(tokenizer, text, "What is the garden code?")) == 1
    both = spans(tokenizer, text, "What are the garden and harbour codes?")
    assert {next(w for w in ("harbour", "garden") if w in s) for s in both} == {"harbour", "garden"}
    assert len(spans(tokenizer, text, "the garden and harbour codes", count=1)) == 1


@pytest.mark.parametrize(
    ("fact", "others", "query", "length"),
    [
        pytest.param(
            "Room 4 holds the amber key. ",
            [f"Room {n} holds a box of bread. " for n in (1, 2, 3, 5, 6, 7)],
            "What does room 4 hold?",
            12,
            id="a digit",
        ),
        pytest.param(
            "Row T has a cat. ",
            [f"Row {letter} has a dog. " for letter in "BCEFGH"],
            "What does row t have?",
            12,
            id="a letter",
        ),
        pytest.param(
            "Cafe\u0301 sells rye bread. ",
            [FILLER] * 6,
            "What does the caf\u00e9 sell?",
            12,
            id="NFD",
        ),
        pytest.param(
            "\uff32\uff4f\uff4f\uff4d \uff14 is red. ",
            [FILLER] * 6,
            "Which colour has room 4?",
            24,
            id="full width",
        ),
        pytest.param(
            "STRASSE DER FREUNDE. ", [FILLER] * 6, "Wo ist die Straße?", 12, id="folded case"
        ),
        pytest.param(
            "琥珀钥匙在蓝色的书里。",
            ["灯塔的看守写天气。"] * 9,
            "琥珀钥匙在哪里",
            60,
            id="Chinese",
        ),
        pytest.param(
            "琥珀の鍵は青い本の中。",
            ["灯台守は天気を書く。"] * 9,
            "琥珀の鍵はどこ",
            60,
            id="Japanese",
        ),
        pytest.param(
            "กุญแจอำพันอยู่ในหนังสือ ", ["ผู้เฝ้าประภาคารเขียนเรื่องอากาศ "] * 9, "กุญแจอยู่ที่ไหน", 120, id="Thai"
        ),
        pytest.param(
            "호박 열쇠는 파란 책에 있다. ",
            ["등대지기는 날씨를 쓴다. "] * 9,
            "열쇠가 어디에 있나",
            60,
            id="Korean",
        ),
    ],
)
def test_words_of_any_script_and_length_are_found(
    tokenizer: Any, fact: str, others: list[str], query: str, length: int
) -> None:
    half = len(others) // 2
    text = "".join([*others[:half], fact, *others[half:]])
    [found, *_] = spans(tokenizer, text, query, length=length)
    key = fact.split()[0][:3]
    assert key in found
    assert found.index(key) < len(found) // 2


@pytest.mark.parametrize("query", ["zebra", "?", "the zebra"])
def test_nothing_is_chosen_when_no_word_occurs(tokenizer: Any, query: str) -> None:
    assert spans(tokenizer, FILLER * 4, query) == []


@pytest.mark.parametrize("length", [12, 21])
def test_a_document_of_one_span(tokenizer: Any, length: int) -> None:
    ids = tokenizer(FILLER, add_special_tokens=False)["input_ids"][:length]
    query = "Where did the old man go?"
    assert similar_spans(ids, query, tokenizer, count=3, length=length) == [0]
