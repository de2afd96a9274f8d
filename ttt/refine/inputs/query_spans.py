"""Which spans of a document a query asks about, by BM25 over its windows."""

import re
from typing import Any

import numpy as np

from refine_server.ttt.evidence.lexical import score_by_words

WINDOWS_PER_LENGTH = 6
"""How many windows begin within one window's length."""
SENTENCE_BONUS = 1.15
"""Factor on the score of a window that begins a sentence: text that is cut off is learned so."""
SCORED_SHARE = 2, 3
"""The share of a span whose words are scored, from its beginning on: what the text says of those
words follows them, and a window that is scored whole may end before it."""
RELEVANT_SHARE = 0.7
"""A span with less than this share of the best span's score is about something else."""
SENTENCE_END = re.compile(r"[.!?;:]\s*$|\n\s*$")
"""Text after which a sentence may begin, if white space is between."""
WIDE_SENTENCE_END = re.compile(r"[\u3002\uff01\uff1f\uff61\u0964\u0965\u17d4]\s*$")
"""Text after which a sentence may begin at once: full stops of Chinese, Japanese, Hindi, Khmer."""


def similar_spans(
    ids: list[int], query: str, tokenizer: Any, *, count: int, length: int
) -> list[int]:
    """Rank the spans of a document by how similar their beginnings are to a query.

    Of spans with equal scores the last one comes first, because it begins closest to the words in
    common. Words are those of evidence (``evidence.words``), in any script.

    Args:
        ids: the document's tokens, at least ``length`` of them.
        query: a text in the document's own words.
        tokenizer: decodes the ids.
        count: the most spans.
        length: tokens of a span.

    Returns:
        The first token of each span, the most similar one first. Spans do not overlap, and each has
        at least ``RELEVANT_SHARE`` of the best one's score; there are none when no word of the
        query occurs.
    """
    sentences = _sentence_starts(ids, length, tokenizer)
    last, scored = len(ids) - length, length * SCORED_SHARE[0] // SCORED_SHARE[1]
    step = max(1, scored // WINDOWS_PER_LENGTH)
    starts = sorted({*range(0, last, step), last, *sentences}, reverse=True)
    windows = [tokenizer.decode(ids[start : start + scored]) for start in starts]
    scores = np.array(score_by_words(windows, query))
    if not scores.any():
        return []
    scores *= np.where([start in sentences for start in starts], SENTENCE_BONUS, 1.0)
    chosen: list[int] = []
    for window in np.argsort(-scores, kind="stable").tolist():
        if len(chosen) == count or scores[window] < RELEVANT_SHARE * scores.max():
            break
        if all(abs(starts[window] - other) >= length for other in chosen):
            chosen.append(starts[window])
    return chosen


def whole_sentences(ids: list[int], start: int, end: int, tokenizer: Any) -> tuple[int, int]:
    """Cut the parts of other sentences off both edges of a span.

    A model learns text that is cut off as text that is cut off, and continues it in context the way
    the document does. At most a third is cut at either edge, and no sentence that the span begins
    with; a span within one sentence stays as it is.

    Args:
        ids: the document's tokens.
        start, end: the span.
        tokenizer: decodes the ids.

    Returns:
        First and last token (exclusive) of what is left.
    """
    edge = (end - start) - (end - start) * SCORED_SHARE[0] // SCORED_SHARE[1]
    before = max(start - 1, 0)  # whether a sentence begins with the span, the token before it says
    begins = {before + at for at in _sentence_starts(ids[before : end + 1], 1, tokenizer)}
    if end == len(ids):
        begins.add(end)
    first = min((at for at in begins if start <= at <= start + edge), default=start)
    last = max((at for at in begins if at >= end - edge), default=end)
    return first, last


def _sentence_starts(ids: list[int], length: int, tokenizer: Any) -> set[int]:
    """Find the tokens that begin a sentence and have ``length`` tokens from there on."""
    pieces = [tokenizer.decode([token]) for token in ids]
    begins = {0}
    for at in range(1, len(ids) - length + 1):
        before, here = pieces[at - 1], pieces[at]
        is_apart = here[:1].isspace() or before[-1:].isspace()
        if WIDE_SENTENCE_END.search(before) or (SENTENCE_END.search(before) and is_apart):
            begins.add(at)
    return begins
