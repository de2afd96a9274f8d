"""Variable tracking: chains of assignments, distributed in order over noise."""

import random
import string
from dataclasses import dataclass
from itertools import pairwise

from refine_server.benchmarks.quality.ruler.needles import NOISE
from refine_server.benchmarks.quality.ruler.samples import Sample, around

EXAMPLE_SENTENCES = 12
"""Sentences of noise in the solved example, which officially has at most 500 tokens."""


@dataclass(frozen=True)
class Variables:
    """Makes samples of the task vt; a haystack's size is its number of sentences of noise."""

    chains: int = 1
    hops: int = 4

    @property
    def least(self) -> int:
        """The smallest haystack that can hold a chain."""
        return self.hops + 1

    def make(self, task: str, index: str, size: int, rng: random.Random) -> Sample:
        """Make one sample with a haystack of ``size`` sentences, after a solved example."""
        shown = self._make(task, index, EXAMPLE_SENTENCES, 3, rng)
        examples = f"{shown.prompt} {' '.join(shown.outputs)}\n\n"
        return self._make(task, index, size, 5, rng, examples)

    def _make(
        self,
        task: str,
        index: str,
        size: int,
        letters: int,
        rng: random.Random,
        examples: str = "",
    ) -> Sample:
        names = self._names(letters, rng)
        chains = [names[i : i + self.hops + 1] for i in range(0, len(names), self.hops + 1)]
        sentences = [NOISE] * size
        values = []
        for chain in chains:
            values.append(str(rng.randint(10_000, 99_999)))
            assignments = [f"VAR {chain[0]} = {values[-1]}"]
            assignments += [f"VAR {new} = VAR {old}" for old, new in pairwise(chain)]
            places = sorted(rng.sample(range(len(sentences)), len(assignments)))
            for before, (place, sentence) in enumerate(zip(places, assignments, strict=True)):
                sentences.insert(place + before, sentence)
        return around(
            task,
            index,
            "\n".join(sentences),
            chains[0],
            examples=examples,
            query=values[0],
            count=str(self.hops + 1),
        )

    def _names(self, letters: int, rng: random.Random) -> list[str]:
        names: dict[str, None] = {}  # an ordered set
        while len(names) < self.chains * (self.hops + 1):
            names["".join(rng.choices(string.ascii_uppercase, k=letters))] = None
        return list(names)
