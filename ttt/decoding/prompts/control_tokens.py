"""Control tokens in the texts of requests: they are spelled out, so that they control nothing."""

import re
from typing import Any

BREAK = "\ufdd0"
"""Marks a place where a text must be encoded in two pieces. A noncharacter of Unicode, which is
reserved for use inside a program and is therefore dropped from the texts of requests."""
SLOT = "\ufdd1"
"""Stands for a text that is not known yet while a chat template is rendered; a noncharacter too."""


class ControlTokens:
    """The control tokens of a tokenizer.

    These are its special tokens and, in texts that the chat template does not interpret, the other
    added tokens that the chat template contains. White space is never a control token.

    Args:
        tokenizer: a tokenizer of ``transformers``.
    """

    def __init__(self, tokenizer: Any) -> None:
        template = str(getattr(tokenizer, "chat_template", None) or "")
        added = tokenizer.added_tokens_decoder.values()
        special = {token.content for token in added if token.special}
        written = {token.content for token in added if token.content in template}
        self._special = _starts_of(special)
        self._all = _starts_of(special | written)
        # A single character cannot be cut in two.
        self._dropped = str.maketrans(
            dict.fromkeys([BREAK, SLOT, *(token for token in special if len(token) == 1)])
        )

    def occur_in(self, text: str) -> bool:
        """Return whether a text contains a control token."""
        return self._special.search(text) is not None

    def drop_marks(self, text: str) -> str:
        """Remove ``BREAK`` and ``SLOT`` from a request's text."""
        return text.replace(BREAK, "").replace(SLOT, "")

    def spell_out(self, text: str, *, by_assistant: bool = False) -> str:
        """Put a ``BREAK`` into each control token of a request's text.

        Args:
            text: the text.
            by_assistant: whether it is an earlier answer of the model. Only special tokens are
                control tokens in it, because chat templates look for the others there, for example
                to remove the reasoning before ``</think>``.
        """
        control = self._special if by_assistant else self._all
        return control.sub(rf"\1{BREAK}", text.translate(self._dropped))


def _starts_of(tokens: set[str]) -> re.Pattern[str]:
    """Match the first character of each occurrence of a token, also where occurrences overlap."""
    texts = sorted((token for token in tokens if not token.isspace()), key=len, reverse=True)
    alternatives = "|".join(map(re.escape, texts)) or "(?!)"
    # Some tokenizers find added tokens in a text in lower case.
    return re.compile(f"(?={alternatives})(.)", re.DOTALL | re.IGNORECASE)
