"""Generates samples of all thirteen tasks and any length; the same seed gives the same samples."""

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from refine_server.benchmarks.common.rows import DataError
from refine_server.benchmarks.common.tokens import Tokenizer
from refine_server.benchmarks.quality.ruler.counting import CodedWords, CommonWords
from refine_server.benchmarks.quality.ruler.needles import Needles
from refine_server.benchmarks.quality.ruler.qa import Documents, read_hotpotqa, read_squad
from refine_server.benchmarks.quality.ruler.samples import Sample
from refine_server.benchmarks.quality.ruler.variables import Variables


class Maker(Protocol):
    """Makes samples of one task; the task defines the unit of a haystack's ``size``."""

    @property
    def least(self) -> int: ...

    def make(self, task: str, index: str, size: int, rng: random.Random) -> Sample: ...


@dataclass(frozen=True)
class Sources:
    """The files that some tasks need."""

    essay: Path | None = None
    squad: Path | None = None
    hotpotqa: Path | None = None

    def essay_words(self) -> tuple[str, ...]:
        """Return the essay's words."""
        path = _given(self.essay, "--essay", "any long text")
        try:
            words = tuple(path.read_text("utf-8").split())
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"--essay: cannot read {path}: {error}") from None
        if not words:
            raise DataError(f"--essay: {path} is empty")
        return words

    def squad_documents(self) -> Documents:
        """Return SQuAD's paragraphs and questions."""
        return read_squad(_given(self.squad, "--squad", "SQuAD's dev-v2.0.json"))

    def hotpotqa_documents(self) -> Documents:
        """Return HotpotQA's paragraphs and questions."""
        wanted = "HotpotQA's hotpot_dev_distractor_v1.json"
        return read_hotpotqa(_given(self.hotpotqa, "--hotpotqa", wanted))


def _given(path: Path | None, option: str, wanted: str) -> Path:
    if path is None:
        raise DataError(f"--tasks: some of these need {option}: {wanted}")
    return path


TASKS: dict[str, Callable[[Sources, int], Maker]] = {
    "niah_single_1": lambda s, n: Needles("noise"),
    "niah_single_2": lambda s, n: Needles("essay", essay=s.essay_words()),
    "niah_single_3": lambda s, n: Needles("essay", values="uuids", essay=s.essay_words()),
    "niah_multikey_1": lambda s, n: Needles("essay", keys_hidden=4, essay=s.essay_words()),
    "niah_multikey_2": lambda s, n: Needles("needle"),
    "niah_multikey_3": lambda s, n: Needles("needle", keys="uuids", values="uuids"),
    "niah_multivalue": lambda s, n: Needles("essay", values_each=4, essay=s.essay_words()),
    "niah_multiquery": lambda s, n: Needles("essay", asked=4, essay=s.essay_words()),
    "vt": lambda s, n: Variables(),
    "cwe": lambda s, n: CommonWords.for_length(n),
    "fwe": lambda s, n: CodedWords.for_length(n),
    "qa_1": lambda s, n: s.squad_documents(),
    "qa_2": lambda s, n: s.hotpotqa_documents(),
}
"""The thirteen official tasks (``scripts/synthetic.yaml``), and what makes their samples."""


def generate(
    tasks: Sequence[str],
    lengths: Sequence[int],
    samples: int,
    tokenizer: Tokenizer,
    sources: Sources,
    seed: int = 0,
) -> Iterator[Sample]:
    """Yield samples of each task and length.

    A sample depends only on the seed, its task, its length and its number.

    Args:
        tasks: names of the tasks, keys of ``TASKS``.
        lengths: maximum tokens of the prompt and the longest answer together.
        samples: number of samples of each task and length.
        tokenizer: tokenizer that counts the lengths.
        sources: files for the tasks that need them.
        seed: random seed for the samples.

    Raises:
        DataError: a task is unknown, lacks its file, or cannot be as short as one of the lengths.
    """
    for task in tasks:
        if task not in TASKS:
            raise DataError(
                f"--tasks: {task!r} is not a RULER task; the tasks are {', '.join(TASKS)}"
            )
        for length in lengths:
            maker = TASKS[task](sources, length)
            fitting = Fitting(maker, task, length, tokenizer, seed)
            size = fitting.largest()
            for number in range(samples):
                sample = fitting.sample(number, size)
                yield replace(sample, length=fitting.tokens(sample))


@dataclass(frozen=True)
class Fitting:
    """Finds the largest haystack that fits into a length."""

    maker: Maker
    task: str
    length: int
    tokenizer: Tokenizer
    seed: int

    def tokens(self, sample: Sample) -> int:
        """Count the tokens of a sample's prompt and of its longest answer."""
        return len(self.tokenizer.encode(sample.prompt)) + sample.max_tokens

    def largest(self) -> int:
        """Return the size of the largest haystack with which the first sample fits."""
        low, high = self.maker.least, self.maker.least * 2
        self._least_fits()
        while self._fits(high) and high <= self.length * 4:  # a unit may be shorter than a token
            low, high = high, high * 2
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self._fits(middle) else (low, middle)
        return low

    def sample(self, number: int, size: int) -> Sample:
        """Make the ``number``-th sample; its haystack is made smaller until it fits."""
        while True:
            sample = self._make(number, size)
            if self.tokens(sample) <= self.length:
                return sample
            if size == self.maker.least:
                raise DataError(f"--lengths: {self.length} tokens are too few for {self.task}")
            size = max(size - max(size // 50, 1), self.maker.least)

    def _make(self, number: int, size: int) -> Sample:
        rng = random.Random(f"{self.seed}/{self.task}/{self.length}/{number}")
        return self.maker.make(self.task, f"{self.length}-{number}", size, rng)

    def _fits(self, size: int) -> bool:
        return self.tokens(self._make(0, size)) <= self.length

    def _least_fits(self) -> None:
        self.sample(0, self.maker.least)
