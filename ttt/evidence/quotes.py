"""Where a document says what an answer says: the answer's own words, found in the document."""

import heapq
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import NamedTuple

from refine_server.ttt.evidence.lexical import STOP_WORDS
from refine_server.ttt.evidence.suffix_automaton import SuffixAutomaton
from refine_server.ttt.evidence.words import IDEOGRAPH, units
from refine_server.ttt.interface.reports import Quote

MIN_WEIGHT = 8
"""The least weight of a quote of two words or more; see ``_weight``."""
RARE_WEIGHT = 4
"""The least weight of a single word that is a quote by itself, if it is rare in the document."""
RARE_OCCURRENCES = 3
"""A word that occurs more often in the document does not tell where an answer comes from."""
MAX_QUOTES = 32
"""The most quotes of one answer: those of the greatest weight."""


class _Candidate(NamedTuple):
    """A run of the answer's words at one of its places in the document; the least is the best."""

    less_weight: int
    """Minus its weight."""
    elsewhere: bool
    """Whether it is not in a preferred range."""
    less_words: int
    """Minus the number of its words."""
    place: int
    """Its first word in the document."""
    start: int
    """Its first word in the answer."""
    end: int
    """One beyond its last word in the answer."""


def find_quotes(
    answer: str, document: str, preferred: Sequence[tuple[int, int]] = ()
) -> list[Quote]:
    """Find the longest runs of an answer's words in a document.

    Case, white space and punctuation between words do not count. A run is a quote if it is the
    whole answer, if it has at least two words that are no stop words and eight letters, or if it
    has a word that is rare in the document. Each word of the answer is in one quote at most. The
    time is nearly linear in the length of both texts.

    Args:
        answer: the text whose words are looked up.
        document: the text in which they are.
        preferred: ranges of the document's characters. Of several places that say the same, one of
            these is taken; otherwise the first.

    Returns:
        The quotes in the order of the answer.
    """
    said = [unit.key for unit in units(answer)]
    places = list(units(document))
    told = [unit.key for unit in places]
    runs = _Runs(said, Counter(told))

    def candidates(start: int, end: int, shift: int) -> Iterator[_Candidate]:
        """Yield a run of the answer that stands ``shift`` words later in the document, if apt."""
        if start < end and runs.is_specific(start, end):
            first, last = places[start + shift].start, places[end + shift - 1].end
            inside = any(a <= first and last <= b for a, b in preferred)
            weight = runs.weight(start, end)
            yield _Candidate(-weight, not inside, start - end, start + shift, start, end)

    heap: list[_Candidate] = []
    for start, place, length in SuffixAutomaton(said).matches(told):
        heap += candidates(start, start + length, place - start)
    heapq.heapify(heap)
    chosen: list[_Candidate] = []
    covered = bytearray(len(said))
    while heap and len(chosen) < MAX_QUOTES:
        best = heapq.heappop(heap)
        start, end = _first_free(covered, best.start, best.end)
        if (start, end) == (best.start, best.end):
            covered[start:end] = b"\1" * (end - start)
            chosen.append(best)
            continue
        shift = best.place - best.start
        for rest in (*candidates(start, end, shift), *candidates(end, best.end, shift)):
            heapq.heappush(heap, rest)
    chosen.sort(key=lambda candidate: candidate.start)
    spans = [(places[c.place].start, places[c.place + c.end - c.start - 1].end) for c in chosen]
    return [Quote(start=first, end=last, text=document[first:last]) for first, last in spans]


class _Runs:
    """What the runs of an answer's words are worth; each question takes constant time."""

    def __init__(self, words: Sequence[str], occurrences: Counter[str]) -> None:
        weights = [_weight(word) for word in words]
        rare = [
            weight >= RARE_WEIGHT and occurrences[word] <= RARE_OCCURRENCES
            for word, weight in zip(words, weights, strict=True)
        ]
        self._words = len(words)
        self._weight = [0, *accumulate(weights)]
        self._content = [0, *accumulate(weight > 0 for weight in weights)]
        self._rare = [0, *accumulate(rare)]

    def weight(self, start: int, end: int) -> int:
        """Return the weight of a run."""
        return self._weight[end] - self._weight[start]

    def is_specific(self, start: int, end: int) -> bool:
        """Return whether a run is long or rare enough to tell where it comes from."""
        content = self._content[end] - self._content[start]
        if content > 1 and self.weight(start, end) >= MIN_WEIGHT:
            return True
        if self._rare[end] > self._rare[start]:
            return True
        return content > 0 and end - start == self._words


def _weight(word: str) -> int:
    """Return how much a word tells: its letters; nothing for a stop word.

    A digit counts two, since numbers are short, and an ideograph three, since it is half a word.
    """
    if word in STOP_WORDS:
        return 0
    if IDEOGRAPH.match(word):
        return 3 * len(word)
    return sum(2 if character.isdigit() else character.isalnum() for character in word)


def _first_free(covered: bytearray, start: int, end: int) -> tuple[int, int]:
    """Return the first words from ``start`` to ``end`` that are in no quote yet."""
    first = covered.find(0, start, end)
    if first < 0:
        return end, end
    last = covered.find(1, first, end)
    return first, end if last < 0 else last
