"""A row as a document and a query, cut in the middle to a number of tokens as is official."""

from dataclasses import dataclass

from refine_server.benchmarks.longbench.data import Row
from refine_server.benchmarks.rows import DataError
from refine_server.benchmarks.tokens import Tokenizer


@dataclass(frozen=True)
class Asked:
    """What is sent: the whole ``prompt``, or its part up to the context's end and the rest."""

    document: str
    query: str
    prompt: str
    truncated: bool


def ask(row: Row, max_length: int, tokenizer: Tokenizer) -> Asked:
    """The row's prompt in two parts, of at most about ``max_length`` tokens together.

    The official truncation keeps the first and the last half of the whole prompt's tokens. So does
    this one, but it cuts the context only: an instruction or a question is never cut. A row with
    half of a surrogate pair stays whole: no tokenizer reads it, and no server takes it.

    Raises:
        DataError: the prompt is too long even without its context.
    """
    before, after = row.task.before, row.task.after(row.question)
    if not _is_unicode(row.context + after):
        return Asked(before + row.context, after.lstrip("\n"), before + row.context + after, False)
    around = len(tokenizer.encode(before)), len(tokenizer.encode(after))
    context, truncated = cut_middle(row.context, around, max_length, tokenizer)
    # The server puts its own separator between a document and a query.
    return Asked(before + context, after.lstrip("\n"), before + context + after, truncated)


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def cut_middle(
    text: str, around: tuple[int, int], max_length: int, tokenizer: Tokenizer
) -> tuple[str, bool]:
    """A text without its middle, so that it and ``around`` have ``max_length`` tokens at most.

    Args:
        text: what may be cut.
        around: tokens before the text and behind it; they count, but are not cut.
        max_length: of all.
        tokenizer: of the model.

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
