"""Common parts of two sequences equal those that trying every part finds."""

from hypothesis import given, settings
from hypothesis import strategies as st

from refine_server.ttt.evidence.suffix_automaton import Match, SuffixAutomaton

STEADY = settings(derandomize=True, deadline=None)


def by_trying(pattern: str, text: str) -> list[Match]:
    """The longest part of the pattern before each place, if it does not go on behind it."""
    lengths = [
        max(n for n in range(end + 1) if text[end - n : end] in pattern)
        for end in range(len(text) + 1)
    ]
    return [
        Match(pattern.find(text[end - n : end]), end - n, n)
        for end, n in enumerate(lengths)
        if n and (end == len(text) or lengths[end + 1] != n + 1)
    ]


@STEADY
@given(st.text(alphabet="abc"), st.text(alphabet="abcd"))
def test_parts_equal_those_found_by_trying(pattern: str, text: str) -> None:
    assert list(SuffixAutomaton(pattern).matches(text)) == by_trying(pattern, text)
