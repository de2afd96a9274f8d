"""RULER's samples as questions for a replay."""

from collections.abc import Iterable, Iterator

from refine_server.benchmarks.quality.replay.questions import Question
from refine_server.benchmarks.quality.ruler.samples import Sample


def questions(samples: Iterable[Sample]) -> Iterator[Question]:
    """Yield each sample as the benchmark asks and scores it."""
    for sample in samples:
        yield Question(
            task=sample.task,
            id=sample.index,
            document=sample.before + sample.context,
            # The server puts its own separator between a document and a query.
            query=sample.after.lstrip("\n") + sample.answer_prefix,
            max_tokens=sample.max_tokens,
            score=sample.score,
            kept={"answers": sample.outputs, "tokens": sample.length},
        )
