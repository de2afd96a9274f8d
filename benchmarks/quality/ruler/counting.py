"""Finding the most frequent words: in a numbered list (cwe), and in coded text (fwe)."""

import math
import random
import string
from dataclasses import dataclass

from refine_server.benchmarks.common.rows import DataError
from refine_server.benchmarks.quality.ruler.samples import Sample, around
from refine_server.benchmarks.quality.ruler.wordlists import words

COMMON = 10
ZETA_2 = math.pi**2 / 6
NOISE_WORD = "..."


@dataclass(frozen=True)
class CommonWords:
    """Makes samples of the task cwe; a haystack's size is its number of distinct words."""

    common: int
    """How often each common word is listed."""
    uncommon: int
    """How often each other word is listed."""
    example: tuple[int, int, int]
    """For the solved example, its distinct words, and the repeats of common and other words."""

    least = COMMON + 1

    @classmethod
    def for_length(cls, length: int) -> "CommonWords":
        """Choose the official repeats for a length in tokens: short prompts have fewer."""
        if length < 4096:
            return cls(common=6, uncommon=1, example=(20, 3, 1))
        return cls(common=30, uncommon=3, example=(40, 10, 3))

    def make(self, task: str, index: str, size: int, rng: random.Random) -> Sample:
        """Make one sample over ``size`` distinct words, after a solved example."""
        context, common = self._list(*self.example, rng)
        shown = around(task, index, context, common)
        solved = " ".join(f"{number}. {word}" for number, word in enumerate(common, 1))
        context, common = self._list(size, self.common, self.uncommon, rng)
        return around(task, index, context, common, examples=f"{shown.prompt} {solved}\n")

    def _list(
        self, size: int, common: int, uncommon: int, rng: random.Random
    ) -> tuple[str, list[str]]:
        if size > len(words()):
            raise DataError(f"--lengths: too long for cwe, which has only {len(words())} words")
        chosen = rng.sample(words(), size)
        listed = chosen[:COMMON] * common + chosen[COMMON:] * uncommon
        rng.shuffle(listed)
        text = " ".join(f"{number}. {word}" for number, word in enumerate(listed, 1))
        return text, chosen[:COMMON]


@dataclass(frozen=True)
class CodedWords:
    """Makes samples of the task fwe: words drawn by Zipf's law with exponent 2.

    A haystack's size is its number of drawn words.
    """

    vocabulary: int
    """Number of distinct words; officially a fiftieth of the length in tokens."""
    letters: int = 6
    """Number of letters in a word."""

    least = 80
    """With fewer words, the fourth word is as frequent as the third."""

    @classmethod
    def for_length(cls, length: int) -> "CodedWords":
        """Choose the official vocabulary for a length in tokens."""
        return cls(max(length // 50, 5))

    def make(self, task: str, index: str, size: int, rng: random.Random) -> Sample:
        """Make one sample of about ``size`` words: the top one is noise, the next three count."""
        ranked: dict[str, None] = {NOISE_WORD: None}
        while len(ranked) < self.vocabulary:
            ranked["".join(rng.choices(string.ascii_lowercase, k=self.letters))] = None
        drawn = [
            word
            for rank, word in enumerate(ranked, 1)
            for _ in range(int(size * rank**-2 / ZETA_2))
        ]
        rng.shuffle(drawn)
        return around(task, index, " ".join(drawn), list(ranked)[1:4])
