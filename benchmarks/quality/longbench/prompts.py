"""A row split into document and query, truncated in the middle as LongBench does officially."""

from dataclasses import dataclass

from refine_server.benchmarks.common.rows import DataError
from refine_server.benchmarks.common.tokens import Tokenizer
from refine_server.benchmarks.quality.longbench.data import Row


@dataclass(frozen=True, kw_only=True, slots=True)
class SplitPrompt:
    """A row's prompt, whole and split into the document and the query that a request sends."""

    document: str
    """The prompt up to the end of the context."""
    query: str
    """The rest of the prompt, without leading line breaks."""
    prompt: str
    """The whole prompt."""
    truncated: bool
    """Whether the middle of the context was cut out."""


def split_prompt(row: Row, max_length: int | None, tokenizer: Tokenizer) -> SplitPrompt:
    """Split a row's prompt into two parts, which have at most about ``max_length`` tokens together.

    Without a ``max_length`` nothing is cut. The official truncation keeps the first and the last
    half of the whole prompt's tokens. This one does too, but it cuts the context only, never the
    instruction or the question. A row with an unpaired surrogate is not truncated: tokenizers
    cannot encode it, and the server refuses it.

    Raises:
        DataError: the prompt is too long even without its context.
    """
    before, after = row.task.before, row.task.after(row.question)
    if max_length is None or not _is_unicode(row.context + after):
        context, truncated = row.context, False
    else:
        around = len(tokenizer.encode(before)), len(tokenizer.encode(after))
        context, truncated = cut_middle(row.context, around, max_length, tokenizer)
    # The server puts its own separator between a document and a query.
    return SplitPrompt(
        document=before + context,
        query=after.lstrip("\n"),
        prompt=before + context + after,
        truncated=truncated,
    )


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def cut_middle(
    text: str, around: tuple[int, int], max_length: int, tokenizer: Tokenizer
) -> tuple[str, bool]:
    """Cut the middle out of a text, so that it and ``around`` have at most ``max_length`` tokens.

    Args:
        text: the text to cut.
        around: numbers of tokens before and after the text; they count, but are not cut.
        max_length: maximum number of tokens of the text and what is around it.
        tokenizer: the model's tokenizer.

    Returns:
        The text and whether it was cut.
    """
    before, after = around
    budget = max_length - before - after
    if budget <= 0:
        raise DataError(
            f"--max-length: the prompt needs {before + after} tokens beside the context"
        )
    ids = tokenizer.encode(text)
    if len(ids) <= budget:
        return text, False
    head = min(max(max_length // 2 - before, 0), budget)
    tail = budget - head
    return tokenizer.decode(ids[:head]) + tokenizer.decode(ids[len(ids) - tail :]), True
