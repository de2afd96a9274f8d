"""Where a document says what an answer says: the answer's own words, found in the document."""

from collections.abc import Sequence

from refine_server.ttt.evidence.words import units
from refine_server.ttt.interface.reports import Quote

SHORTEST = 2
"""Words in a row that an answer must share with the document; fewer if the answer has fewer."""
MAX_QUOTES = 32
"""The most quotes of one answer, in the order of the answer."""
MAX_PLACES = 256
"""The most places in a document that are tried for a pair of words."""


def find_quotes(
    answer: str, document: str, preferred: Sequence[tuple[int, int]] = ()
) -> list[Quote]:
    """Find the longest runs of an answer's words in a document.

    Case, white space and punctuation between words do not count.

    Args:
        answer: the text whose words are looked up.
        document: the text in which they are.
        preferred: ranges of the document's characters. Of several places that say the same, one of
            these is taken; otherwise the first.
    """
    words = [answer[start:end].casefold() for start, end in units(answer)]
    places = list(units(document))
    known = [document[start:end].casefold() for start, end in places]
    shortest = min(SHORTEST, len(words))
    if not shortest:
        return []
    index: dict[tuple[str, ...], list[int]] = {}
    needed = {tuple(words[i : i + shortest]) for i in range(len(words) - shortest + 1)}
    for at in range(len(known) - shortest + 1):
        if (key := tuple(known[at : at + shortest])) in needed:
            index.setdefault(key, []).append(at)

    quotes: list[Quote] = []
    at = 0
    while at <= len(words) - shortest and len(quotes) < MAX_QUOTES:
        found = index.get(tuple(words[at : at + shortest]), ())
        runs = [(_run(words, known, at, place), place) for place in found[:MAX_PLACES]]
        if not runs:
            at += 1
            continue
        length = max(run for run, _ in runs)
        spans = [(places[p][0], places[p + length - 1][1]) for run, p in runs if run == length]
        inside = [s for s in spans if any(a <= s[0] and s[1] <= b for a, b in preferred)]
        start, end = (inside or spans)[0]
        quotes.append(Quote(start=start, end=end, text=document[start:end]))
        at += length
    return quotes


def _run(words: Sequence[str], known: Sequence[str], at: int, place: int) -> int:
    """Count the words from ``at`` on that are those of the document from ``place`` on."""
    length = 0
    while (
        at + length < len(words)
        and place + length < len(known)
        and words[at + length] == known[place + length]
    ):
        length += 1
    return length
