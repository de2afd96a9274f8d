"""LongBench's rows as questions for a replay."""

from collections.abc import Iterator, Sequence
from functools import partial

from refine_server.benchmarks.common.tokens import Tokenizer
from refine_server.benchmarks.quality.longbench.data import Row
from refine_server.benchmarks.quality.longbench.prompts import split_prompt
from refine_server.benchmarks.quality.longbench.score import score
from refine_server.benchmarks.quality.replay.questions import Question


def questions(
    rows: Sequence[Row], max_length: int | None, tokenizer: Tokenizer
) -> Iterator[Question]:
    """Yield each row as the benchmark asks and scores it, cut to ``max_length`` tokens.

    Without one the server cuts, to what its model reads.
    """
    for row in rows:
        asked = split_prompt(row, max_length, tokenizer)
        kept = {
            "answers": row.answers,
            "all_classes": row.classes,
            "length": row.length,
            "truncated": asked.truncated,
        }
        yield Question(
            task=row.task.name,
            id=row.id,
            document=asked.document,
            query=asked.query,
            max_tokens=row.task.max_tokens,
            score=partial(score, row.task, answers=row.answers, classes=row.classes),
            kept=kept,
        )
