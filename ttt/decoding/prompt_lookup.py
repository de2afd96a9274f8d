"""Drafts by prompt lookup: what followed the last few tokens where they stood before.

Answers about a document copy from it, and reading a few tokens at once costs little more than one.
A drafted token is kept only if it is what the model would have written, so drafts change no answer
(speculative decoding, arXiv 2211.17192; prompt lookup, Saxena 2023).
"""

from collections.abc import Iterable

LONGEST = 5
"""Most tokens that are matched, and so drafted: six rows cost 1.6 times a row, and more tokens are
rarely right."""


class Lookup:
    """The tokens so far, and what they say of the next ones.

    A draft is as long as the match that it follows: the longer that is, the more of what came next
    comes again.
    """

    def __init__(self, tokens: Iterable[int]) -> None:
        self._tokens: list[int] = []
        self._after: dict[int, list[int]] = {}  # the places after each token, the last one's not
        for token in tokens:
            self.append(token)

    def append(self, token: int) -> None:
        """One more token was written."""
        if self._tokens:
            self._after.setdefault(self._tokens[-1], []).append(len(self._tokens))
        self._tokens.append(token)

    def draft(self, limit: int) -> tuple[int, ...]:
        """Up to ``limit`` tokens that may come next: after the latest of the longest matches."""
        longest, start = 0, 0
        for place in reversed(self._after.get(self._tokens[-1], ())):
            matched = self._matched(place)
            if matched > longest:
                longest, start = matched, place
            if longest == LONGEST:
                break
        return tuple(self._tokens[start : start + min(longest, limit)])

    def _matched(self, place: int) -> int:
        """How many tokens before ``place`` are the last ones, too; ``LONGEST`` at most."""
        most = min(LONGEST, place)
        differing = (n for n in range(1, most + 1) if self._tokens[place - n] != self._tokens[-n])
        return next(differing, most + 1) - 1
