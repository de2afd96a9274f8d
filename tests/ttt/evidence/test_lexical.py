"""Lexical ranking: words in common, in every script."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from refine_server.ttt.evidence.lexical import STOP_WORDS, score_by_words
from refine_server.ttt.evidence.words import terms

STEADY = settings(derandomize=True, deadline=None)


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
        (["Room 3 holds the bread.", "Room 4 holds the key."], "What does room 4 hold?"),
        (["Row s holds bread.", "Row t holds the key."], "What does row T hold?"),
        (["The harbour's gate.", "Hall s is red."], "Which colour has hall S?"),
        (["caf\u00e9 Berlin", "cafe\u0301 na\u00efve"], "na\u0131ve? nai\u0308ve"),
        (["東京の天気は晴れです。", "灯台の鍵は青い本の中にあります。"], "鍵はどこにありますか"),
        (["부산의 날씨", "등대의 열쇠는 파란 책에"], "열쇠가 어디에"),
        (["ຝົນຕົກ", "ກະແຈຢູ່ໃນປຶ້ມ"], "ກະແຈ"),
        (["nothing here", "to be or not to be"], "to be or not to be"),
    ],
    ids=[
        "prose",
        "camel",
        "snake",
        "han",
        "thai",
        "casefold",
        "number",
        "digit",
        "letter",
        "apostrophe",
        "accents",
        "japanese",
        "korean",
        "lao",
        "stop-words-only",
    ],
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


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("The harbour's CODE.", ["the", "harbour", "code"]),
        ("don't, it’s, we'LL", ["don", "it", "we"]),
        ("room 4, row s, C", ["room", "4", "row", "s", "c"]),
        ("Ｒｏｏｍ ４ ②", ["room", "4", "2"]),
        ("straße STRASSE ﬁne", ["strasse", "strasse", "fine"]),
        ("e\u0301te\u0301 été", ["été", "été"]),
        ("snake_case", ["snake_case", "snake", "case"]),
        ("getHTTPResponse", ["gethttpresponse", "get", "http", "response"]),
        ("__init__", ["__init__", "init"]),
        ("1,234,567", ["1234567"]),
        ("12.05.2024", ["12.05.2024", "12", "05", "2024"]),
        ("租金x", ["租", "租金", "金", "x"]),
        ("Python3是", ["python3", "python", "3", "是"]),
        ("ｶﾞｽ", ["ガス"]),
        ("서울은", ["서울", "울은"]),
        ("ดี", ["ดี"]),
        ("كتاب 👩", ["كتاب"]),
        ("?! 👍 —", []),
    ],
)
def test_terms_of_a_text(text: str, found: list[str]) -> None:
    assert terms(text) == found


@STEADY
@given(st.text())
def test_terms_of_any_text_have_neither_spaces_nor_capitals(text: str) -> None:
    for term in terms(text):
        assert term.split() == [term]
        assert term == term.casefold()


def test_a_word_of_one_ideograph_is_found_among_others() -> None:
    assert score_by_words(["狗在叫", "白猫跑了"], "猫")[1] > 0


def test_question_words_do_not_count() -> None:
    texts = ["What do you do when it rains, and how?", "The rent rises in May."]
    assert best(texts, "What do you do when the rent rises, and how?") == 1
    assert score_by_words(texts, "How does the zebra do?") == [0.0, 0.0]


@STEADY
@given(st.lists(st.text(max_size=20), max_size=6), st.text(max_size=20))
def test_a_score_is_positive_exactly_where_a_term_is_shared(texts: list[str], query: str) -> None:
    asked = set(terms(query))
    asked = asked - (STOP_WORDS - set("dmosty")) or asked
    scores = score_by_words(texts, query)
    assert [score > 0 for score in scores] == [not asked.isdisjoint(terms(t)) for t in texts]
