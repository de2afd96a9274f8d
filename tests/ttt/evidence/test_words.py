"""Words keep their places in a text when the text is normalised."""

import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from refine_server.ttt.evidence.words import NormalText, units

STEADY = settings(derandomize=True, deadline=None)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Room 4", [("Room", "room"), ("4", "4")]),
        ("cafe\u0301 bar", [("cafe\u0301", "caf\u00e9"), ("bar", "bar")]),
        ("a \ufb01ne day", [("a", "a"), ("\ufb01ne", "fine"), ("day", "day")]),
        ("\uff76\uff9e\uff7d", [("\uff76\uff9e", "\u30ac"), ("\uff7d", "\u30b9")]),
        ("\u1112\u1161\u11ab \u2461", [("\u1112\u1161\u11ab", "\ud55c"), ("\u2461", "2")]),
        (
            "\u0e01\u0e33 x",
            [("\u0e01\u0e33", "\u0e01\u0e4d"), ("\u0e01\u0e33", "\u0e32"), ("x", "x")],
        ),
        ("STRA\u00dfE \u2122", [("STRA\u00dfE", "strasse"), ("\u2122", "tm")]),
    ],
)
def test_a_word_is_found_where_it_stands(text: str, words: list[tuple[str, str]]) -> None:
    assert [(text[unit.start : unit.end], unit.key) for unit in units(text)] == words


@STEADY
@given(st.text())
def test_a_text_is_normalised_as_a_whole(text: str) -> None:
    normal = NormalText.of(text)
    assert normal.text == unicodedata.normalize("NFKC", text)
    assert len(normal.starts) == len(normal.ends) == len(normal.text)
    assert list(normal.starts) == sorted(normal.starts)
    assert all(0 <= a < b <= len(text) for a, b in zip(normal.starts, normal.ends, strict=True))


@STEADY
@given(st.text())
def test_a_text_and_its_normal_form_have_the_same_words(text: str) -> None:
    normal = unicodedata.normalize("NFKC", text)
    assert [unit.key for unit in units(text)] == [unit.key for unit in units(normal)]
