"""What the prompt contains before a question: the document, nothing, or a selection of it."""

from collections.abc import Sequence
from typing import Literal, Protocol

from refine_server.benchmarks.common.rows import DataError
from refine_server.benchmarks.common.tokens import Tokenizer
from refine_server.benchmarks.quality.longbench.prompts import cut_middle
from refine_server.benchmarks.quality.regimes.items import Item, Question
from refine_server.ttt.evidence.chunks import Offsets, cut
from refine_server.ttt.evidence.lexical import score_by_words
from refine_server.ttt.evidence.passages import fit, join

Regime = Literal["context", "memory", "truncated", "passages"]
REGIMES: tuple[Regime, ...] = ("context", "memory", "truncated", "passages")
PASSAGE_TOKENS = 64


class LocatingTokenizer(Tokenizer, Protocol):
    """A tokenizer that knows where the tokens are in their text."""

    def offsets(self, text: str) -> Offsets: ...


def text_of(
    item: Item, question: Question, regime: Regime, window: int, tokenizer: LocatingTokenizer
) -> str | None:
    """Return the text that precedes a question in its prompt, None for no text.

    ``truncated`` is the document without its middle, ``passages`` its best passages by BM25 in
    document order; both have at most ``window`` tokens.
    """
    if regime == "memory":
        return None
    if regime == "context":
        return item.before + item.context
    if regime == "truncated":
        around = len(tokenizer.encode(item.before)), 0
        return item.before + cut_middle(item.context, around, window, tokenizer)[0]
    budget = window - len(tokenizer.encode(item.before))
    return item.before + best_passages(item.context, question.about, budget, tokenizer)


def best_passages(text: str, query: str, budget: int, tokenizer: LocatingTokenizer) -> str:
    """Choose chunks of at most ``PASSAGE_TOKENS`` each, the best by BM25, ``budget`` in all."""
    chunks = cut(text, tokenizer.offsets(text), PASSAGE_TOKENS)
    scores = score_by_words([text[chunk.first : chunk.last] for chunk in chunks], query)
    return join(text, fit(chunks, scores, budget))[0]


def regimes_of(names: Sequence[str]) -> list[Regime]:
    """Parse the names of regimes.

    Raises:
        DataError: a name is unknown, or there is none.
    """
    for name in names or [""]:
        if name not in REGIMES:
            raise DataError(f"--regimes: {name!r} is not one of {', '.join(REGIMES)}")
    return [regime for regime in REGIMES if regime in names]
