"""Text to token ids, for texts that begin a prompt and for texts that continue one."""

from collections.abc import Sequence
from typing import Any

from refine_server.ttt.decoding.prompts.control_tokens import BREAK

WORD_CONTEXT, LINE_CONTEXT = "a", "\n"
"""What precedes a continuation while it is encoded: a word, or a line break before another word."""
WINDOW = 512
"""Characters at the end of a text on which ``encode_stable`` tries continuations."""
LONGEST_TAIL = 64
"""Most characters that ``encode_stable`` leaves to the continuation."""
PROBES = ("a", "A", " ", "\n", "1", ".")
"""What continuations may begin with: one text of each kind that tokenizers tell apart."""


class TextEncoder:
    """Encodes texts without adding tokens at their ends.

    A text is encoded in separate pieces where it contains ``BREAK``, and otherwise as a whole.

    Args:
        tokenizer: a tokenizer of ``transformers``.
        control_tokens: whether special tokens in a text are recognised; else they are spelled out.
    """

    def __init__(self, tokenizer: Any, *, control_tokens: bool) -> None:
        self._tokenizer = tokenizer
        self._split_special_tokens = not control_tokens
        self._contexts: dict[str, list[int]] = {"": []}
        for context in (WORD_CONTEXT, LINE_CONTEXT):
            (self._contexts[context],) = self._ids([context])

    def encode(self, text: str) -> list[int]:
        """Encode a text that begins a prompt."""
        (ids,) = self._encode_pieces([text], continues=False)
        return ids

    def encode_after(self, text: str) -> list[int]:
        """Encode a text that continues a prompt, as if the prompt's end were a token's end.

        SentencePiece tokenizers begin a text with a space that a continuation must not have. The
        text is therefore encoded behind a context, whose tokens are then removed.
        """
        (ids,) = self._encode_pieces([text], continues=True)
        return ids

    def encode_stable(
        self, text: str, following: str, *, shortest: int = 0
    ) -> tuple[list[int], str]:
        """Encode a text up to where its tokens do not depend on what follows it.

        The result, and the rest of the text with its continuation, encoded by ``encode_after``,
        have together the tokens of the whole. ``PROBES`` are tried as continuations. If they show
        no such place among the last characters, the whole text is encoded.

        Args:
            text: the text.
            following: what always follows the text, before the unknown part of the continuation.
            shortest: the part that is encoded has more characters than this.

        Returns:
            The token ids, and the rest of the text.
        """
        window = text[-WINDOW:]
        before = len(text) - len(window)
        continuations = [following + probe for probe in PROBES]
        # One call, so that a text that is no longer than the window is encoded once.
        ids, *whole = self._encode_pieces(
            [window, *(window + continuation for continuation in continuations)], continues=False
        )
        lowest = max(len(window) - LONGEST_TAIL, shortest + 1 - before, 1)
        head, length = ids, len(window)
        while length >= lowest and not self._is_stable(head, window[length:], continuations, whole):
            length -= 1
            head = self.encode(window[:length])
        if length < lowest:
            head, length = ids, len(window)
        rest = window[length:]
        return (self.encode(text.removesuffix(rest)) if before else head), rest

    def _is_stable(
        self, head: list[int], rest: str, continuations: list[str], whole: list[list[int]]
    ) -> bool:
        # One after the other, because most places fail at the first continuation.
        return all(
            ids[: len(head)] == head and ids[len(head) :] == self.encode_after(rest + continuation)
            for ids, continuation in zip(whole, continuations, strict=True)
        )

    def _encode_pieces(self, texts: Sequence[str], *, continues: bool) -> list[list[int]]:
        pieces = [
            (number, piece, _context_of(piece) if continues or place else "")
            for number, text in enumerate(texts)
            for place, piece in enumerate(text.split(BREAK))
            if piece
        ]
        encoded = self._ids([context + piece for _, piece, context in pieces])
        ids: list[list[int]] = [[] for _ in texts]
        for (number, piece, context), found in zip(pieces, encoded, strict=True):
            before = self._contexts[context]
            if found[: len(before)] == before:
                ids[number] += found[len(before) :]
            else:  # the context shares a token with the piece
                ids[number] += self._ids([piece])[0]
        return ids

    def _ids(self, texts: list[str]) -> list[list[int]]:
        if not texts:
            return []
        encoded = self._tokenizer(
            texts, add_special_tokens=False, split_special_tokens=self._split_special_tokens
        )
        return [list(ids) for ids in encoded["input_ids"]]


def _context_of(text: str) -> str:
    """Return a context that shares no token with the beginning of a text."""
    return LINE_CONTEXT if text[0].isalnum() else WORD_CONTEXT
