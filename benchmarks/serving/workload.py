"""What is asked under load: documents of mixed lengths, some of them over again."""

import random
from collections.abc import Sequence
from dataclasses import dataclass

from refine_server.benchmarks.rows import DataError
from refine_server.benchmarks.ruler.generate import Sources, generate
from refine_server.benchmarks.tokens import Tokenizer

TASK = "niah_multikey_2"
"""Its documents can have any length, and no two are alike."""


@dataclass(frozen=True)
class Request:
    """One question about one document. ``repeated``: the document was sent before."""

    document: str
    query: str
    tokens: int
    repeated: bool


@dataclass(frozen=True)
class Mix:
    """How the requests are drawn.

    Attributes:
        lengths: tokens of a sample and the weight of each.
        repeats: probability that a request is about a document that was asked about before.
        seed: of everything random.
    """

    lengths: dict[int, float]
    repeats: float = 0.0
    seed: int = 0

    @classmethod
    def parse(cls, lengths: str, repeats: float, seed: int) -> "Mix":
        """From ``512:3,2048:1``; a weight may be left out.

        Raises:
            DataError: it is something else.
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
        """The first ``count`` requests: the same for the same seed."""
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
        """For each request the length of a new document, or the number of an earlier request."""
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
