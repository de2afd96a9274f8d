"""Server-sent events, parsed as the HTML standard says."""

import codecs
from collections.abc import Iterable, Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class ServerSentEvent:
    """One event of a stream."""

    event: str
    data: str


def parse(chunks: Iterable[bytes]) -> Iterator[ServerSentEvent]:
    """Events from a response's bytes, however they are cut. A last event cut short is dropped."""
    event, data = "message", list[str]()
    for line in _lines(chunks):
        if not line:
            if data:
                yield ServerSentEvent(event, "\n".join(data))
            event, data = "message", []
            continue
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if name == "event":
            event = value
        elif name == "data":
            data.append(value)


def _lines(chunks: Iterable[bytes]) -> Iterator[str]:
    """Whole lines. Only CR, LF and CRLF end one, unlike str.splitlines, so JSON stays whole."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    pending = ""
    for chunk in chunks:
        pending += decoder.decode(chunk)
        # A CR at the very end may be the first half of a CRLF: it waits for the next chunk.
        held = "\r" if pending.endswith("\r") else ""
        text = pending.removesuffix("\r") if held else pending
        *lines, rest = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
        yield from lines
        pending = rest + held
