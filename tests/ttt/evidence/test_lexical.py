"""Lexical ranking: words in common, in every script."""

import pytest

from refine_server.ttt.evidence.lexical import score_by_words
from refine_server.ttt.evidence.words import terms


def best(texts: list[str], query: str) -> int:
    scores = score_by_words(texts, query)
    return max(range(len(texts)), key=scores.__getitem__)


@pytest.mark.parametrize(
    ("texts", "query"),
    [
        (["The cat sleeps.", "The rent is due in May."], "When is the rent due?"),
        (["def area(w): ...", "def maxRetryCount(): return 3"], "What is the retry count?"),
        (["timeout_seconds = 5", "max_batch_size = 8"], "How large is a batch?"),
        (["第一条规定宠物。", "租户每月一日支付租金。"], "什么时候支付租金"),
        (["สัตว์เลี้ยงห้ามเข้า", "ผู้เช่าจ่ายค่าเช่า"], "จ่ายค่าเช่าเมื่อไร"),
        (["Strasse", "Größe der Wohnung"], "GRÖSSE?"),
        (["| 7 | kg |", "| 42 | kg |"], "Which row has 42?"),
        (["nothing here", "to be or not to be"], "to be or not to be"),
    ],
    ids=["prose", "camel", "snake", "han", "thai", "casefold", "number", "stop words only"],
)
def test_the_text_with_the_querys_words_is_first(texts: list[str], query: str) -> None:
    assert best(texts, query) == 1


@pytest.mark.parametrize("texts", [["a b c"], ["", "  "], []])
def test_no_word_in_common_scores_nothing(texts: list[str]) -> None:
    assert score_by_words(texts, "zebra") == [0.0] * len(texts)


def test_duplicates_score_the_same() -> None:
    one, other, third = score_by_words(["red fox", "red fox", "hen"], "fox")
    assert one == other > third


def test_identifiers_are_terms_as_a_whole_and_in_parts() -> None:
    assert terms("maxRetryCount") == ["maxretrycount", "max", "retry", "count"]
    assert terms("HTTPServer2") == ["httpserver2", "http", "server", "2"]
    assert terms("租金x") == ["租金", "x"]
