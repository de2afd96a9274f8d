"""Quotes: the answer's own words, where the document has them."""

import time
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from refine_server.ttt.evidence.quotes import find_quotes
from refine_server.ttt.evidence.words import units

STEADY = settings(derandomize=True, deadline=None)

DOCUMENT = "Rent: 900 euros.\nThe rent is due on the 1st of May, at noon. The rent is 900 euros."


def quoted(answer: str, document: str = DOCUMENT, **options: object) -> list[str]:
    return [document[q.start : q.end] for q in find_quotes(answer, document, **options)]  # type: ignore[arg-type]


def test_the_longest_run_of_words_is_found() -> None:
    assert quoted("It is due on the 1st of May.") == ["is due on the 1st of May"]


def test_case_white_space_and_punctuation_do_not_count() -> None:
    assert quoted("AT   NOON, the rent") == ["at noon. The rent"]


def test_one_word_is_enough_for_an_answer_of_one_word() -> None:
    assert quoted("May") == ["May"]
    assert quoted("in May") == []


def test_the_place_in_the_evidence_is_preferred() -> None:
    [first] = find_quotes("900 euros", DOCUMENT)
    [later] = find_quotes("900 euros", DOCUMENT, [(60, len(DOCUMENT))])
    assert first.start < 20
    assert later.start > 60


def test_scripts_without_spaces_are_compared_character_by_character() -> None:
    assert quoted("答案是每月一日", "租户每月一日支付租金") == ["每月一日"]


def test_nothing_to_quote() -> None:
    assert quoted("") == quoted("?!") == quoted("zebra crossing") == []
    assert quoted("anything", "") == []


@STEADY
@given(st.text(max_size=80), st.text(max_size=200))
def test_a_quote_has_the_answers_words(answer: str, document: str) -> None:
    for quote in find_quotes(answer, document):
        assert 0 <= quote.start < quote.end <= len(document)


def test_a_large_document_takes_no_time() -> None:
    document = "the same words again and again " * 20_000
    began = time.monotonic()
    find_quotes("the same words again " * 50, document)
    assert time.monotonic() - began < 10


STORY = """The old man walked along the path. The harbour
  Code IS amber. “It shines brightly”, he said.

| rent | $1,250.00 |
港口的密码是琥珀。รหัสท่าเรือคืออำพัน Müller slept. It rained, and it is of the best.
"""


@pytest.mark.parametrize(
    ("answer", "found"),
    [
        ("The harbour code is amber!", ["The harbour\n  Code IS amber"]),
        ("It is amber", ["IS amber"]),
        ('He says: "it shines brightly"', ["It shines brightly"]),
        ("The rent is $1,250.00 a month", ["rent", "1,250.00"]),
        ("密码是琥珀，对吧", ["密码是琥珀"]),
        ("เขาบอกว่ารหัสท่าเรือคือ", ["รหัสท่าเรือคือ"]),
        ("amber and zebra and MÜLLER", ["amber", "Müller"]),
        ("It", []),
        ("It is of the", []),
        ("琥珀", ["琥珀"]),
    ],
)
def test_what_tells_where_an_answer_comes_from_is_found(answer: str, found: list[str]) -> None:
    assert quoted(answer, STORY) == found


def test_the_longest_run_is_found_though_a_shorter_one_comes_first() -> None:
    document = "The harbour code changes. The garden code. The harbour code is amber since May."
    assert quoted("The harbour code is amber.", document) == ["The harbour code is amber"]


def test_quotes_share_no_word_of_the_answer() -> None:
    document = "alpha beta gamma delta. Elsewhere: delta epsilon zeta theta iota."
    found = quoted("alpha beta gamma delta epsilon zeta theta iota", document)
    assert found == ["alpha beta gamma", "delta epsilon zeta theta iota"]


def test_a_single_word_that_is_everywhere_tells_nothing() -> None:
    answer = "Perhaps the tower and the zebra"
    assert quoted(answer, "The tower. " * 3) == ["The tower"]
    assert quoted(answer, "The tower. " * 9) == []


@pytest.mark.parametrize(
    ("answer", "document"),
    [
        ("amber " * 4_000, "amber " * 40_000),
        ("琥珀" * 2_000, "琥珀" * 50_000),
        ("alpha beta gamma " * 1_300 + "delta", "alpha beta gamma " * 6_000),
    ],
)
def test_repetitive_texts_take_nearly_linear_time(answer: str, document: str) -> None:
    began = time.monotonic()
    assert len(find_quotes(answer, document)) == 1
    assert time.monotonic() - began < 20  # it is about one; quadratic time would be minutes


TEXT = st.text(alphabet=st.sampled_from("aB1 .,\n漢ก้é\u0301👩\u200dßİ"), max_size=40)


@STEADY
@given(answer=TEXT, document=TEXT, cut=st.tuples(st.integers(0, 40), st.integers(0, 40)))
def test_the_words_of_a_quote_stand_together_in_the_answer(
    answer: str, document: str, cut: tuple[int, int]
) -> None:
    answer += " " + document[min(cut) : max(cut)]

    def words(text: str) -> str:
        return "".join(
            f"<{unicodedata.normalize('NFKC', text[a:b]).casefold()}>" for a, b, _ in units(text)
        )

    for text in quoted(answer, document):
        assert words(text) in words(answer)
