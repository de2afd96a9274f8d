"""Which spans of a document a question asks about: BM25 over its windows (Robertson and Zaragoza,
The Probabilistic Relevance Framework, 2009; the library is bm25s).
"""

import logging
import re
from typing import Any

import bm25s
import numpy as np

STEP = 6
"""Windows that begin within one length of a window."""
SENTENCE_BONUS = 1.15
"""Factor on the score of a window that begins a sentence: cut text is learned as cut text."""
SCORED = 2, 3
"""Share of a span whose words are scored: what is said of them stands behind them, and a window
that is scored whole may end before it."""
RELEVANT = 0.7
"""Share of the best span's score below which a span is taken for something else."""
ENDS = re.compile(r"[.!?;:]\s*$|\n\s*$")
"""Text after which a sentence may begin."""

logging.getLogger("bm25s").setLevel(logging.WARNING)  # it tells about every index


def similar_spans(
    ids: list[int], query: str, tokenizer: Any, *, count: int, length: int
) -> list[int]:
    """Starts of the spans whose beginnings are most similar to the query, best first; they do not
    overlap.

    Of equals the last comes first, as it begins closest to the words in common. There are
    ``count`` at most, fewer when the others have less than ``RELEVANT`` of the best one's score,
    none when no word of the query occurs. English stop words do not count, and words are what
    stands between spaces and punctuation: not for scripts that write without them.

    Args:
        ids: a document's tokens, at least ``length``.
        query: a text in the document's own words.
        tokenizer: what the ids are of.
        length: of a span, in tokens.
    """
    sentences = _sentences(ids, length, tokenizer)
    last, scored = len(ids) - length, length * SCORED[0] // SCORED[1]
    starts = sorted({*range(0, last, max(1, scored // STEP)), last, *sentences}, reverse=True)
    asked = bm25s.tokenize([query], return_ids=False, show_progress=False)[0]
    windows = [tokenizer.decode(ids[start : start + scored]) for start in starts]
    words = bm25s.tokenize(windows, show_progress=False)
    if not set(asked) & words.vocab.keys():
        return []
    index = bm25s.BM25()
    index.index(words, show_progress=False)
    scores = index.get_scores(asked)
    scores *= np.where([start in sentences for start in starts], SENTENCE_BONUS, 1.0)
    chosen: list[int] = []
    for place in np.argsort(-scores, kind="stable").tolist():
        if len(chosen) == count or scores[place] < RELEVANT * scores.max():
            break
        if all(abs(starts[place] - other) >= length for other in chosen):
            chosen.append(starts[place])
    return chosen


def whole_sentences(ids: list[int], start: int, end: int, tokenizer: Any) -> tuple[int, int]:
    """Where a span begins and ends without the parts of other sentences at its edges.

    Text that is cut off is learned as text that is cut off, and in context it is gone on with: the
    document says how. At either edge only what is not scored by itself, a third, may be left out;
    a span within one sentence stays as it is.
    """
    edge = (end - start) - (end - start) * SCORED[0] // SCORED[1]
    begins = {start + place for place in _sentences(ids[start : end + 1], 1, tokenizer)}
    if end == len(ids):
        begins.add(end)
    first = max(place for place in begins if place <= start + edge)
    last = max((place for place in begins if place >= end - edge), default=end)
    return first, last


def _sentences(ids: list[int], length: int, tokenizer: Any) -> set[int]:
    """Starts of sentences that have room for a window."""
    pieces = [tokenizer.decode([token]) for token in ids]
    begins = {0}
    for place in range(1, len(ids) - length + 1):
        before, here = pieces[place - 1], pieces[place]
        if ENDS.search(before) and (here[:1].isspace() or before[-1:].isspace()):
            begins.add(place)
    return begins
