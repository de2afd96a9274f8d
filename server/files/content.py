"""What a file may contain: text in UTF-8."""

import base64
import binascii
import re
from urllib.parse import unquote_to_bytes

SIGNATURES = (
    (b"%PDF-", "a PDF document"),
    (b"PK\x03\x04", "a ZIP archive, as .docx, .xlsx, .pptx and .epub are"),
    (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "an old Microsoft Office document"),
    (b"{\\rtf", "an RTF document"),
    (b"\x89PNG\r\n", "a PNG image"),
    (b"\xff\xd8\xff", "a JPEG image"),
    (b"GIF8", "a GIF image"),
    (b"\x1f\x8b", "gzip data"),
    (b"RIFF", "RIFF data, as WAV sounds and WebP images are"),
    (b"ID3", "an MP3 sound"),
    (b"\xff\xfe", "text in UTF-16"),
    (b"\xfe\xff", "text in UTF-16"),
)
"""First bytes of files that are often sent, and what they are."""
BASE64 = re.compile(r"[A-Za-z0-9+/\r\n]+={0,2}\s*")
"""Texts that are read as base64. A text of several words is none."""
DATA_URL = re.compile(r"data:(?P<type>[^,]*?)(?P<base64>;base64)?,(?P<data>.*)", re.DOTALL)


class NoTextError(ValueError):
    """Bytes are not text in UTF-8; the message says what they are instead."""


def decode_text(data: bytes) -> str:
    """Return the text of a file, without a byte order mark.

    Raises:
        NoTextError: it is something else.
    """
    for signature, kind in SIGNATURES:
        if data.startswith(signature):
            raise NoTextError(f"is {kind}; only text in UTF-8 can be read. Extract its text first")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise NoTextError(
            f"is neither text in UTF-8 nor of a known type: byte {error.start} is invalid"
        ) from None


def decode_inline(value: str) -> str:
    """Return the text that a client sends within a request, as ``file_data``.

    It is a data URL, or base64, as OpenAI's clients send it; anything else is the text itself.

    Raises:
        NoTextError: it is not text, or a data URL or base64 is damaged.
    """
    if value.startswith("data:"):
        parts = DATA_URL.fullmatch(value)
        if parts is None:
            raise NoTextError("is not a whole data URL")
        data = unquote_to_bytes(parts["data"])
        return decode_text(_from_base64(data) if parts["base64"] else data)
    if BASE64.fullmatch(value):
        return decode_text(_from_base64(value.encode()))
    return value


def _from_base64(data: bytes) -> bytes:
    try:
        return base64.b64decode(b"".join(data.split()), validate=True)
    except binascii.Error:
        raise NoTextError("is not whole base64") from None
