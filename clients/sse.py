"""Server-sent events, parsed as the HTML standard says."""

import codecs
from collections.abc import Iterable, Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class ServerSentEvent:
    """One event of a stream."""

    event: str
    data: str


class Parser:
    """Events from a response's bytes, however they are cut. A last event cut short is dropped."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._pending = ""
        self._event = "message"
        self._data: list[str] = []

    def feed(self, chunk: bytes) -> Iterator[ServerSentEvent]:
        """The events that end within a chunk."""
        for line in self._lines(chunk):
            if not line:
                if self._data:
                    yield ServerSentEvent(self._event, "\n".join(self._data))
                self._event, self._data = "message", []
                continue
            name, _, value = line.partition(":")
            value = value.removeprefix(" ")
            if name == "event":
                self._event = value
            elif name == "data":
                self._data.append(value)

    def _lines(self, chunk: bytes) -> list[str]:
        """Whole lines. Only CR, LF and CRLF end one, unlike splitlines, so JSON stays whole."""
        text = self._pending + self._decoder.decode(chunk)
        # A CR at the very end may be the first half of a CRLF: it waits for the next chunk.
        held = "\r" if text.endswith("\r") else ""
        *lines, rest = text.removesuffix(held).replace("\r\n", "\n").replace("\r", "\n").split("\n")
        self._pending = rest + held
        return lines


def parse(chunks: Iterable[bytes]) -> Iterator[ServerSentEvent]:
    """Events from the chunks of a response."""
    parser = Parser()
    for chunk in chunks:
        yield from parser.feed(chunk)
