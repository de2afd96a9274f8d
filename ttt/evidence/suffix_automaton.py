"""Common parts of two sequences in linear time, by a suffix automaton of the shorter one.

Blumer et al., The smallest automaton recognizing the subwords of a text, 1985.
"""

from collections.abc import Hashable, Iterator, Sequence
from typing import NamedTuple


class Match(NamedTuple):
    """Items that stand in both sequences."""

    pattern_start: int
    """Where they begin in the automaton's sequence, at their first occurrence there."""
    text_start: int
    """Where they begin in the sequence that was searched."""
    length: int
    """How many they are."""


class SuffixAutomaton:
    """All parts of a sequence: a state stands for those that end at the same places."""

    def __init__(self, pattern: Sequence[Hashable]) -> None:
        self._next: list[dict[Hashable, int]] = [{}]
        self._link = [-1]
        """The state of the longest suffix that also ends elsewhere."""
        self._length = [0]
        """Items of a state's longest part."""
        self._end = [0]
        """Where a state's parts first end."""
        self._last = 0
        for end, item in enumerate(pattern, start=1):
            self._append(item, end)

    def matches(self, text: Sequence[Hashable]) -> Iterator[Match]:
        """Yield the parts of a text that are parts of the pattern and cannot be extended in it."""
        state, length = 0, 0
        for at, item in enumerate(text):
            before = state, length
            while state and item not in self._next[state]:
                state = self._link[state]
                length = self._length[state]
            if item in self._next[state]:
                state, length = self._next[state][item], length + 1
            if before[1] and length != before[1] + 1:
                yield self._match(*before, at)
        if length:
            yield self._match(state, length, len(text))

    def _match(self, state: int, length: int, text_end: int) -> Match:
        return Match(self._end[state] - length, text_end - length, length)

    def _append(self, item: Hashable, end: int) -> None:
        new = self._add(self._length[self._last] + 1, {}, end)
        state = self._last
        self._last = new
        while state >= 0 and item not in self._next[state]:
            self._next[state][item] = new
            state = self._link[state]
        if state < 0:
            self._link[new] = 0
            return
        target = self._next[state][item]
        if self._length[target] != self._length[state] + 1:
            target = self._split(state, target, item)
        self._link[new] = target

    def _split(self, state: int, target: int, item: Hashable) -> int:
        """Give the shorter parts of ``target``, which now also end at the new item, a state."""
        copy = self._add(self._length[state] + 1, dict(self._next[target]), self._end[target])
        self._link[copy] = self._link[target]
        self._link[target] = copy
        while state >= 0 and self._next[state].get(item) == target:
            self._next[state][item] = copy
            state = self._link[state]
        return copy

    def _add(self, length: int, following: dict[Hashable, int], end: int) -> int:
        self._next.append(following)
        self._link.append(0)
        self._length.append(length)
        self._end.append(end)
        return len(self._next) - 1
