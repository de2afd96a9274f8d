"""Requests for a load test: documents of mixed lengths, some of them sent repeatedly."""

import random
from collections.abc import Sequence
from dataclasses import dataclass

from refine_server.benchmarks.common.rows import DataError
from refine_server.benchmarks.common.tokens import Tokenizer
from refine_server.benchmarks.quality.ruler.generate import Sources, generate

TASK = "niah_multikey_2"
"""Task of the documents; it has documents of any length, all different."""


@dataclass(frozen=True)
class Request:
    """One question about one document. ``repeated``: the document was sent before."""

    document: str
    query: str
    tokens: int
    repeated: bool


@dataclass(frozen=True)
class Mix:
    """Distribution of the requests."""

    lengths: dict[int, float]
    """Sample lengths in tokens, with the weight of each."""
    repeats: float = 0.0
    """Probability that a request reuses the document of an earlier request."""
    seed: int = 0
    """Random seed."""

    @classmethod
    def parse(cls, lengths: str, repeats: float, seed: int) -> "Mix":
        """Parse lengths like ``512:3,2048:1``; a weight may be left out.

        Raises:
            DataError: the text has another format.
        """
        found = {}
        for part in lengths.split(","):
            length, _, weight = part.partition(":")
            try:
                found[int(length)] = float(weight or 1)
            except ValueError:
                raise DataError(f"--lengths: {part!r} must be TOKENS or TOKENS:WEIGHT") from None
        if min(found.values()) < 0 or not sum(found.values()):
            raise DataError("--lengths: weights must not be negative, and one must be above 0")
        return cls(found, repeats, seed)

    def requests(self, count: int, tokenizer: Tokenizer) -> list[Request]:
        """Return the first ``count`` requests, which depend on the seed only."""
        rng = random.Random(f"mix/{self.seed}")
        chosen = self._chosen(count, rng)
        fresh = {
            length: self._documents(length, sum(c == (length, None) for c in chosen), tokenizer)
            for length in self.lengths
        }
        made: list[Request] = []
        for length, again in chosen:
            if again is None:
                made.append(fresh[length].pop())
            else:
                old = made[again]
                made.append(Request(old.document, old.query, old.tokens, repeated=True))
        return made

    def _chosen(self, count: int, rng: random.Random) -> list[tuple[int, int | None]]:
        """Draw for each request a new document's length or an earlier request's number."""
        lengths: Sequence[int] = list(self.lengths)
        chosen: list[tuple[int, int | None]] = []
        for number in range(count):
            if number and rng.random() < self.repeats:
                again = rng.randrange(number)
                chosen.append((chosen[again][0], again))
            else:
                chosen.append((rng.choices(lengths, list(self.lengths.values()))[0], None))
        return chosen

    def _documents(self, length: int, count: int, tokenizer: Tokenizer) -> list[Request]:
        samples = generate([TASK], [length], count, tokenizer, Sources(), self.seed)
        return [
            Request(s.before + s.context, s.after.strip(), s.length - s.max_tokens, repeated=False)
            for s in samples
        ]
