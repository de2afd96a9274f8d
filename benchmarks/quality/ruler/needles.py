"""Needles in a haystack: numbers or UUIDs hidden in noise, an essay or other needles."""

import random
import re
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from refine_server.benchmarks.quality.ruler.samples import Sample, around
from refine_server.benchmarks.quality.ruler.wordlists import compound

NOISE = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."
NEEDLE = "One of the special magic {type} for {key} is: {value}."
DEPTHS = [round(100 * place / 39) for place in range(40)]
"""Position of a needle, in percent of the haystack's sentences."""

Kind = Literal["words", "numbers", "uuids"]


@dataclass(frozen=True)
class Needles:
    """Makes samples of the NIAH family.

    A haystack's size is its number of words for an essay, of sentences otherwise.
    """

    haystack: Literal["noise", "essay", "needle"]
    """Kind of text that the needles are hidden in; ``essay`` uses the words of ``essay``."""
    keys: Kind = "words"
    """Kind of a needle's key."""
    values: Kind = "numbers"
    """Kind of a needle's value."""
    keys_hidden: int = 1
    """Number of keys in the haystack."""
    values_each: int = 1
    """Number of values for each key."""
    asked: int = 1
    """Number of keys in the question."""
    essay: tuple[str, ...] = ()
    """The words of a long text."""

    @property
    def least(self) -> int:
        """The smallest haystack that can hold the needles."""
        return max(self.keys_hidden, self.asked) * self.values_each

    def make(self, task: str, index: str, size: int, rng: random.Random) -> Sample:
        """Make one sample with a haystack of ``size`` units."""
        keys = [_random(self.keys, rng) for _ in range(max(self.keys_hidden, self.asked))]
        values = {key: [_random(self.values, rng) for _ in range(self.values_each)] for key in keys}
        needles = [self._needle(key, value) for key in keys for value in values[key]]
        rng.shuffle(needles)
        context = self._hide(needles, size, rng)
        asked = rng.sample(keys, self.asked)
        outputs = [value for key in asked for value in values[key]]
        one = self.asked * self.values_each == 1
        return around(
            task,
            index,
            context,
            outputs,
            form="niah_one" if one else "niah",
            type=self.values.removesuffix("s") if one else self.values,
            query=_listed(asked),
        )

    def _needle(self, key: str, value: str) -> str:
        return NEEDLE.format(type=self.values, key=key, value=value)

    def _hide(self, needles: Sequence[str], size: int, rng: random.Random) -> str:
        if self.haystack == "essay":
            return hide_in_essay(needles, self.essay, size, rng)
        if self.haystack == "noise":
            sentences = [NOISE] * size
        else:
            pairs = [(_random(self.keys, rng), _random(self.values, rng)) for _ in range(size)]
            sentences = [self._needle(key, value) for key, value in pairs]
        places = sorted(rng.sample(range(size), len(needles)), reverse=True)
        for place, needle in zip(places, needles, strict=True):
            sentences.insert(place, needle)
        return "\n".join(sentences)


def hide_in_essay(
    needles: Sequence[str], essay: Sequence[str], size: int, rng: random.Random
) -> str:
    """Put needles between sentences of an essay's first ``size`` words; a short essay is repeated.

    The official generator finds sentences with NLTK's punkt model; here they end at a full stop, a
    question mark or an exclamation mark.
    """
    repeated = [*essay] * -(-size // len(essay))
    sentences = re.split(r"(?<=[.!?])\s+", " ".join(repeated[:size]))
    depths = sorted(rng.sample(DEPTHS, len(needles)))
    places = [len(sentences) * depth // 100 for depth in depths]
    for place, needle in reversed(list(zip(places, needles, strict=True))):
        sentences.insert(place, needle)
    return " ".join(sentences)


def _random(kind: Kind, rng: random.Random) -> str:
    if kind == "words":
        return compound(rng)
    if kind == "numbers":
        return str(rng.randint(1_000_000, 9_999_999))
    return str(uuid.UUID(int=rng.getrandbits(128), version=4))


def _listed(keys: Sequence[str]) -> str:
    return keys[0] if len(keys) == 1 else f"{', '.join(keys[:-1])}, and {keys[-1]}"
