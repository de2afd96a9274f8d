"""Paragraphs separate more than lines, lines more than sentences, and sentences more than words."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from refine_server.ttt.evidence.boundaries import Level, levels

STEADY = settings(derandomize=True, deadline=None)


def cut_at(text: str) -> Level:
    """The level of the place that ``|`` marks (``¦`` stands for a ``|`` of the text)."""
    before, _, behind = text.partition("|")
    return Level(levels((before + behind).replace("¦", "|"))[len(before)])


@pytest.mark.parametrize(
    ("text", "level"),
    [
        ("It rained.\n\n|The dogs barked.", Level.PARAGRAPH),
        ("It rained.\r\n\r\n|The dogs barked.", Level.PARAGRAPH),
        ("It rained.|\n  \n\nThe dogs barked.", Level.PARAGRAPH),
        ("It rained.\n|## The dogs", Level.PARAGRAPH),
        ("It rained.\r\n|The dogs barked.", Level.LINE),
        ("- milk\n|- bread\n", Level.LINE),
        ("¦ a ¦ b ¦\n|¦ 1 ¦ 2 ¦", Level.LINE),
        ("def f(x):\n|    return x", Level.LINE),
        ("It rained. |The dogs barked.", Level.SENTENCE),
        ("It rained.| The dogs barked.", Level.SENTENCE),
        ('He said ("It rained.") |Then', Level.SENTENCE),
        ("他去了北京。|然后回家。", Level.SENTENCE),
        ("「雨だ。」|犬が", Level.SENTENCE),
        ("वह गया। |फिर", Level.SENTENCE),
        ("the old man\n|walked", Level.WRAPPED_LINE),
        ("red, |green", Level.CLAUSE),
        ("去了，|然后", Level.CLAUSE),
        ("the |dog", Level.WORD),
        ("北|京", Level.WORD),
        ("the dog|.", Level.EDGE),
        ("do|g", Level.CHARACTER),
        ("e|\u0301", Level.INSIDE),
        ("👩‍|👩‍👧", Level.INSIDE),
        ("\r|\n", Level.INSIDE),
    ],
)
def test_a_place_separates_as_much_as_a_reader_sees(text: str, level: Level) -> None:
    assert cut_at(text) is level


@pytest.mark.parametrize(
    "text", ["Ask J. |Smith", "1. |Turn it off", "e.g. |this", "3.|14", "「雨だ。|」犬"]
)
def test_not_every_full_stop_ends_a_sentence(text: str) -> None:
    assert cut_at(text) < Level.CLAUSE


def test_indentation_stays_with_its_line() -> None:
    assert cut_at("if x:\n|        y()") is Level.LINE
    assert cut_at("if x:\n    |    y()") is Level.WORD
    assert cut_at("if x:\n        |y()") is Level.WORD


@STEADY
@given(st.text(alphabet=st.sampled_from('aB1 .,;\n\r\t-#|("。，漢กั\u0301\u200d👩é'), max_size=40))
def test_every_place_has_a_level_and_the_ends_separate_most(text: str) -> None:
    found = levels(text)
    assert len(found) == len(text) + 1
    assert set(found) <= set(Level)
    assert found[0] == found[-1] == Level.PARAGRAPH
