"""Whether a text exceeds a limit of tokens, found out without encoding all of it."""

import re
import string
from collections.abc import Callable, Sequence, Set
from functools import cached_property
from typing import Any

from refine_server.ttt.decoding.token_bytes import BYTE_ALPHABET

KEEPING_PRE_TOKENIZERS = {b"Sequence", b"Split", b"Digits", b"Punctuation", b"ByteLevel"}
"""Kinds of pre-tokenizers that only cut texts, as long as nothing cut out is removed."""
WORD_CHARACTERS = frozenset(string.ascii_letters + string.digits)
WORD_START = re.compile("(?<= )[A-Za-z0-9]")
SPANS_WORDS = re.compile("[A-Za-z0-9].*[ \u0120][A-Za-z0-9]")
"""A token with the starts of two words; byte-level vocabularies spell the space as U+0120."""
CHARACTERS_PER_TOKEN = 8
"""The most characters for each token of a limit. Prose has four or five for each of its tokens."""
MIN_CHARACTERS = 2**18
"""So many characters are accepted whatever the limit is."""


def most_characters(limit: int) -> int:
    """Return how many characters a text of at most ``limit`` tokens may have.

    A run of white space of any length may be a few tokens; all the work on a text takes time for
    each of its characters.
    """
    return max(limit * CHARACTERS_PER_TOKEN, MIN_CHARACTERS)


class TokenLimit:
    """Recognises oversized texts by their characters and words, or by encoding them in pieces.

    A text within the limit is never called oversized. One that is a little over it may be missed,
    so that the tokens of the whole are still to be counted.

    Args:
        tokenizer: a tokenizer of ``transformers``.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer

    # The vocabulary is read when the first long text needs it: for most texts nothing is to be
    # known of it, and copying a large one takes longer than encoding a question.

    @cached_property
    def longest_token(self) -> int:
        """Length of the longest token in characters."""
        # Byte-level tokens are spelled with one character a byte, so no token has more characters.
        return max(map(len, self._tokenizer.get_vocab()), default=1)

    @cached_property
    def _keeps_bytes(self) -> bool:
        """Whether every byte of a text is part of one of its tokens."""
        return self._keeps(BYTE_ALPHABET.keys())

    @cached_property
    def _parts_words(self) -> bool:
        """Whether every start of a word is part of a token of its own."""
        vocabulary = self._tokenizer.get_vocab()
        return self._keeps(WORD_CHARACTERS) and not any(map(SPANS_WORDS.search, vocabulary))

    def _keeps(self, alphabet: Set[str]) -> bool:
        backend = getattr(self._tokenizer, "backend_tokenizer", None)
        return (
            backend is not None
            and alphabet <= self._tokenizer.get_vocab().keys()
            and _is_lossless(backend)
        )

    def is_exceeded(
        self, texts: Sequence[str], limit: int, count_tokens: Callable[[str], int]
    ) -> bool:
        """Return whether texts have, for certain, more than ``limit`` tokens together.

        Args:
            texts: the texts; one that is no longer than a piece is not encoded here.
            limit: number of tokens.
            count_tokens: encodes a piece of a text and returns the number of its tokens.
        """
        characters = sum(map(len, texts))
        if characters <= limit:
            return False
        if self._keeps_bytes and characters > limit * self.longest_token:
            return True
        if self._parts_words and sum(len(WORD_START.findall(text)) for text in texts) > limit:
            return True
        # So many characters have at least twice as many tokens as a cut is allowed for.
        length = max(limit, 2 * self.longest_token**2)
        if characters <= length:
            return False
        tokens = 0
        for text in texts:
            for start in range(0, len(text), length):
                # A cut may part one token into single characters, which the whole does not have.
                allowance = self.longest_token if start else 0
                tokens += max(count_tokens(text[start : start + length]) - allowance, 0)
                if tokens > limit:
                    return True
        return False


def _is_lossless(backend: Any) -> bool:
    """Return whether every byte of a text is part of one of its tokens, if the vocabulary has it.

    That holds for byte-level BPE without a normalizer. Other tokenizers may drop or merge
    characters: a run of spaces, or characters that are not in the vocabulary.
    """
    if backend.normalizer is not None or backend.pre_tokenizer is None:
        return False
    pre_tokenizer = backend.pre_tokenizer.__getstate__()
    kinds = set(re.findall(rb'"type":"(\w+)"', pre_tokenizer))
    added = backend.get_added_tokens_decoder().values()
    return (
        type(backend.model).__name__ == "BPE"
        and b"ByteLevel" in kinds
        and kinds <= KEEPING_PRE_TOKENIZERS
        and b'"Removed"' not in pre_tokenizer
        and not any(token.lstrip or token.rstrip for token in added)
    )
