"""Bodies that a client has compressed."""

import zlib

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from refine_server.server.http.errors import ApiError

WINDOW_BITS = {"gzip": 31, "x-gzip": 31, "deflate": 15}
"""Encodings that are unpacked, with the number by which zlib knows the format of each."""
RAW_BITS = -15
"""The number of deflate's data without zlib's header, which some clients send as `deflate`."""
PIECE_BYTES = 64 * 1024
"""Most bytes that are unpacked at once: a kilobyte can unpack to a megabyte."""


class ContentEncoding:
    """Unpacks bodies with ``content-encoding: gzip`` or ``deflate``, and refuses others with 415.

    It stands outside of ``BodyLimit``, which counts what is unpacked, and stops at its limit.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        encoding = ""
        if scope["type"] == "http":
            encoding = Headers(scope=scope).get("content-encoding", "").strip().lower()
        if encoding in ("", "identity"):
            await self.app(scope, receive, send)
        elif encoding in WINDOW_BITS:
            await self.app(scope, _Unpacker(receive, encoding), send)
        else:
            response = _unsupported(encoding).response()
            response.headers["accept-encoding"] = "gzip, deflate"  # as RFC 9110, section 15.5.16
            await response(scope, receive, send)


class _Unpacker:
    """Receives a body in its unpacked form, piece by piece."""

    def __init__(self, receive: Receive, encoding: str) -> None:
        self._receive = receive
        self._encoding = encoding
        self._unpacker = zlib.decompressobj(WINDOW_BITS[encoding])
        self._is_begun = False
        self._packed = b""
        """What was received and is still to be unpacked."""
        self._is_received = False
        """Whether nothing more is to come from the client."""
        self._is_complete = False

    async def __call__(self) -> Message:
        if self._is_complete:  # the next message is the end of the connection
            return await self._receive()
        while not self._packed and not self._is_received:
            message = await self._receive()
            if message["type"] != "http.request":
                return message
            self._packed = message.get("body", b"")
            self._is_received = not message.get("more_body", False)
        piece = self._unpack()
        self._is_complete = self._is_received and not self._packed and len(piece) < PIECE_BYTES
        if self._is_complete and not self._unpacker.eof:
            raise self._damaged()
        return {"type": "http.request", "body": piece, "more_body": not self._is_complete}

    def _unpack(self) -> bytes:
        if not self._is_begun and self._packed:
            self._is_begun = True
            # The low bits of a first byte of zlib are 8; those of deflate's first block are not.
            if self._encoding == "deflate" and self._packed[0] & 15 != zlib.DEFLATED:
                self._unpacker = zlib.decompressobj(RAW_BITS)
        if self._packed and self._unpacker.eof:  # a further member, as of files joined by `cat`
            self._unpacker = zlib.decompressobj(WINDOW_BITS[self._encoding])
        try:
            piece = self._unpacker.decompress(self._packed, PIECE_BYTES)
        except zlib.error:
            raise self._damaged() from None
        self._packed = self._unpacker.unconsumed_tail or self._unpacker.unused_data
        return piece

    def _damaged(self) -> ApiError:
        message = f"The body is not whole in the form that content-encoding says: {self._encoding}."
        return ApiError(400, message, "invalid_body")


def _unsupported(encoding: str) -> ApiError:
    message = (
        f"content-encoding: {encoding[:64]!r} is not supported. Send the body with gzip or "
        "deflate, or as it is."
    )
    return ApiError(415, message, "unsupported_encoding")
