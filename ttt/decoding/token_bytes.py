"""The bytes of single tokens: a token need not hold whole characters."""

import re
from typing import Any

_BYTE_TOKEN = re.compile(r"<0x([0-9A-F]{2})>")


class TokenBytes:
    """Maps a token id to the token's bytes, which joined in order are the text.

    Byte-level tokenizers (as GPT-2's) spell every byte as a character of their own alphabet;
    SentencePiece's spell a space as U+2581 and a byte that is not a character as ``<0xNN>``.

    Args:
        tokenizer: a fast tokenizer of ``transformers``.
    """

    def __init__(self, tokenizer: Any) -> None:
        backend = tokenizer.backend_tokenizer
        self._tokenizer = tokenizer
        self._added = {
            id: token.content for id, token in backend.get_added_tokens_decoder().items()
        }
        decoder = b"" if backend.decoder is None else backend.decoder.__getstate__()
        self._is_byte_level = b'"ByteLevel"' in decoder
        self._byte_fallback = b'"ByteFallback"' in decoder

    def __call__(self, id: int) -> bytes:
        if id in self._added:
            return str(self._added[id]).encode()
        token = self._tokenizer.convert_ids_to_tokens(id)
        if token is None:  # the model's vocabulary may be padded beyond the tokenizer's
            return b""
        if self._is_byte_level:
            return bytes(BYTE_ALPHABET[character] for character in token)
        if self._byte_fallback and (byte := _BYTE_TOKEN.fullmatch(token)):
            return bytes([int(byte[1], 16)])
        return str(token).replace("\u2581", " ").encode()


def _byte_alphabet() -> dict[str, int]:
    """Return GPT-2's alphabet: printable bytes spell themselves, others follow from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    spelled = {chr(byte): byte for byte in printable}
    return spelled | {chr(0x100 + n): byte for n, byte in enumerate(others)}


BYTE_ALPHABET = _byte_alphabet()
"""Each byte by the character that byte-level tokenizers spell it with."""
