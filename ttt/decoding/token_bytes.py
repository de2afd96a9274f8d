"""What single tokens stand for, in bytes: a token need not be whole characters."""

import re
from typing import Any

_BYTE_TOKEN = re.compile(r"<0x([0-9A-F]{2})>")


class TokenBytes:
    """The bytes of each token of a tokenizer, so that a text's tokens joined are the text.

    Byte-level tokenizers (GPT-2's kind) spell every byte as a character of its own alphabet;
    SentencePiece's kind spell a space as U+2581 and a byte that is no character as ``<0xNN>``.
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
            return bytes(_BYTES[character] for character in token)
        if self._byte_fallback and (byte := _BYTE_TOKEN.fullmatch(token)):
            return bytes([int(byte[1], 16)])
        return str(token).replace("\u2581", " ").encode()


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's alphabet: printable bytes are themselves, others stand from U+0100 on in order."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    spelled = {chr(byte): byte for byte in printable}
    return spelled | {chr(0x100 + n): byte for n, byte in enumerate(others)}


_BYTES = _byte_alphabet()
