"""Parses server-sent events as the HTML standard defines them, sections 9.2.5 and 9.2.6.

https://html.spec.whatwg.org/multipage/server-sent-events.html#parsing-an-event-stream
"""

import codecs
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

LINE_END = re.compile(r"\r\n|\r|\n")  # str.splitlines would split JSON at U+2028 as well


@dataclass(frozen=True, slots=True)
class ServerSentEvent:
    """One event of a stream."""

    event: str
    """The type of the event; ``message`` when the stream names none."""
    data: str
    """The values of the event's ``data`` fields, joined by newlines."""


class Parser:
    """Parses a stream incrementally; its bytes may be cut into chunks anywhere.

    A byte order mark at the start is dropped, and so is an event that no blank line ends. The
    fields ``id`` and ``retry`` tell a client how to reconnect. Here a broken stream is an error
    instead, so they are ignored like the fields that the standard does not know.

    Example::

        parser = Parser()
        for chunk in response.iter_bytes():
            for event in parser.feed(chunk):
                print(event.event, event.data)
    """

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8-sig")("replace")
        self._line = ""
        self._ended_in_cr = False
        self._event = ""
        self._data: list[str] = []

    def feed(self, chunk: bytes) -> Iterator[ServerSentEvent]:
        """Yield the events that end within a chunk."""
        for line in self._lines(self._decoder.decode(chunk)):
            if not line:
                if self._data:
                    yield ServerSentEvent(self._event or "message", "\n".join(self._data))
                self._event, self._data = "", []
                continue
            field, _, value = line.partition(":")  # a comment is a field without a name
            value = value.removeprefix(" ")
            if field == "event":
                self._event = value
            elif field == "data":
                self._data.append(value)

    def _lines(self, text: str) -> list[str]:
        """Return the lines that end within a text, and keep the unfinished one."""
        if not text:
            return []
        # A CR ends its line at once. An LF at the start of the next text belongs to it.
        if self._ended_in_cr:
            text = text.removeprefix("\n")
        self._ended_in_cr = text.endswith("\r")
        *lines, self._line = LINE_END.split(self._line + text)
        return lines


def parse(chunks: Iterable[bytes]) -> Iterator[ServerSentEvent]:
    """Yield the events of a whole stream from its chunks."""
    parser = Parser()
    for chunk in chunks:
        yield from parser.feed(chunk)
