"""Evidence by words: BM25 over the chunks of a document.

Robertson and Zaragoza, The Probabilistic Relevance Framework, 2009; the library is bm25s.
"""

import logging
from collections.abc import Sequence

import bm25s
from bm25s.stopwords import STOPWORDS_EN_PLUS

from refine_server.ttt.evidence.words import terms

logging.getLogger("bm25s").setLevel(logging.WARNING)  # it logs every index

STOP_WORDS = frozenset(STOPWORDS_EN_PLUS)
"""English words that say nothing of what a text is about, those of questions among them."""

_LETTERS = frozenset("dmosty")
"""Stop words for their use behind an apostrophe, where they are no terms; a row may be named so."""


def score_by_words(texts: Sequence[str], query: str) -> list[float]:
    """Score texts by the words that they have in common with a query; 0 where there are none.

    English stop words do not count, unless the query has no others.
    """
    asked = terms(query)
    ignored = STOP_WORDS - _LETTERS
    asked = [term for term in asked if term not in ignored] or asked
    corpus = [terms(text) for text in texts]
    known = {term for document in corpus for term in document}
    asked = [term for term in asked if term in known]
    if not asked:
        return [0.0] * len(texts)
    index = bm25s.BM25()
    index.index(corpus, show_progress=False)
    return [float(score) for score in index.get_scores(asked)]
