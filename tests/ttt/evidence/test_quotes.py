"""Quotes: the answer's own words, where the document has them."""

import time

from hypothesis import given
from hypothesis import strategies as st

from refine_server.ttt.evidence.quotes import find_quotes

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


@given(st.text(max_size=80), st.text(max_size=200))
def test_a_quote_has_the_answers_words(answer: str, document: str) -> None:
    for quote in find_quotes(answer, document):
        assert 0 <= quote.start < quote.end <= len(document)


def test_a_large_document_takes_no_time() -> None:
    document = "the same words again and again " * 20_000
    began = time.monotonic()
    find_quotes("the same words again " * 50, document)
    assert time.monotonic() - began < 10
