"""What the prompt contains before a question: the document, nothing, or a selection of it."""

import re
from collections.abc import Sequence
from typing import Literal

import bm25s

from refine_server.benchmarks.adaptation.items import Item, Question
from refine_server.benchmarks.longbench.prompts import cut_middle
from refine_server.benchmarks.rows import DataError
from refine_server.benchmarks.tokens import Tokenizer

Regime = Literal["context", "memory", "truncated", "passages"]
REGIMES: tuple[Regime, ...] = ("context", "memory", "truncated", "passages")
PASSAGE_TOKENS = 64


def text_of(
    item: Item, question: Question, regime: Regime, window: int, tokenizer: Tokenizer
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


def best_passages(text: str, query: str, budget: int, tokenizer: Tokenizer) -> str:
    """Choose passages of about ``PASSAGE_TOKENS`` each, of whole sentences, ``budget`` in all."""
    passages = _passages(text, tokenizer)
    index = bm25s.BM25()
    index.index(bm25s.tokenize([p for p, _ in passages], show_progress=False), show_progress=False)
    asked = bm25s.tokenize([query], show_progress=False)
    [ranked], _ = index.retrieve(asked, k=len(passages), show_progress=False)
    chosen: list[int] = []
    for place in ranked.tolist():
        if passages[place][1] <= budget:
            chosen.append(place)
            budget -= passages[place][1]
    return " ".join(passages[place][0] for place in sorted(chosen))


def _passages(text: str, tokenizer: Tokenizer) -> list[tuple[str, int]]:
    """Join sentences into passages; return them with their token counts, one added to join them."""
    passages: list[tuple[str, int]] = []
    for sentence in re.split(r"(?<=[.!?])\s+|\n+", text):
        tokens = len(tokenizer.encode(sentence)) + 1
        if passages and passages[-1][1] + tokens <= PASSAGE_TOKENS:
            passages[-1] = f"{passages[-1][0]} {sentence}", passages[-1][1] + tokens
        else:
            passages.append((sentence, tokens))
    return passages


def regimes_of(names: Sequence[str]) -> list[Regime]:
    """Parse the names of regimes.

    Raises:
        DataError: a name is unknown, or there is none.
    """
    for name in names or [""]:
        if name not in REGIMES:
            raise DataError(f"--regimes: {name!r} is not one of {', '.join(REGIMES)}")
    return [regime for regime in REGIMES if regime in names]
