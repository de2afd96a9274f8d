"""The parser of event streams, rule by rule as in the HTML standard, however bytes are cut."""

import re
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from refine_server.clients.sse import Parser, ServerSentEvent, parse

BOM = b"\xef\xbb\xbf"


def message(data: str) -> ServerSentEvent:
    return ServerSentEvent("message", data)


RULES: dict[str, tuple[bytes, list[ServerSentEvent]]] = {
    "a leading BOM is dropped": (BOM + b"data: x\n\n", [message("x")]),
    "only one BOM is dropped": (BOM + BOM + b"data: x\n\ndata: y\n\n", [message("y")]),
    "a later BOM is a character": (b"data: " + BOM + b"x\n\n", [message("\ufeffx")]),
    "LF ends a line": (b"data: x\ndata: y\n\n", [message("x\ny")]),
    "CR ends a line": (b"data: x\rdata: y\r\r", [message("x\ny")]),
    "CRLF ends one line": (b"data: x\r\ndata: y\r\n\r\n", [message("x\ny")]),
    "line ends may be mixed": (b"data: x\r\n\rdata: y\n\r\n", [message("x"), message("y")]),
    "LF and CR are two line ends": (b"data: x\n\rdata: y\n\r", [message("x"), message("y")]),
    "no other character ends a line": (
        "data: a\u2028b\u2029c\x85d\x0be\x0cf\n\n".encode(),
        [message("a\u2028b\u2029c\x85d\x0be\x0cf")],
    ),
    "bytes that are not UTF-8 are replaced": (
        b"data: \xff\xe2\x80x\n\n",
        [message("\ufffd\ufffdx")],
    ),
    "a comment is ignored": (b": data: x\n:\n\ndata: y\n\n", [message("y")]),
    "an event has its type": (b"event: a\ndata: x\n\n", [ServerSentEvent("a", "x")]),
    "the last type counts": (b"event: a\nevent: b\ndata: x\n\n", [ServerSentEvent("b", "x")]),
    "a type is the event's own": (b"event: a\n\ndata: x\n\n", [message("x")]),
    "an empty type is `message`": (b"event: a\nevent:\ndata: x\n\n", [message("x")]),
    "a type without a colon is empty": (b"event: a\nevent\ndata: x\n\n", [message("x")]),
    "data without a colon is empty": (b"data\n\ndata\ndata\n\ndata:", [message(""), message("\n")]),
    "an event without data is none": (b"event: a\nid: 7\n\n\n\n", []),
    "one space after the colon is dropped": (
        b"data:x\n\ndata: x\n\ndata:  x\n\ndata:\tx\n\n",
        [message("x"), message("x"), message(" x"), message("\tx")],
    ),
    "the first colon separates": (b"data: a: b\n\n", [message("a: b")]),
    "names are compared literally": (b"Data: x\n data: y\ndata : z\ndatas: w\n\n", []),
    "id and retry change no event": (
        b"id: 7\nretry: 10\ndata: x\n\nid: a\x00b\nretry: soon\ndata: y\n\nid\nretry\n\n",
        [message("x"), message("y")],
    ),
    "NUL is a character": (b"data: a\x00b\n\n", [message("a\x00b")]),
    "an event without its blank line is dropped": (b"data: x\n\ndata: y\n", [message("x")]),
    "a line without its end is dropped": (b"data: x\n\ndata: y", [message("x")]),
}


@pytest.mark.parametrize("rule", RULES)
def test_a_stream_is_parsed_as_the_standard_says(rule: str) -> None:
    stream, events = RULES[rule]
    assert list(parse([stream])) == events
    assert by_the_standard(stream) == events


def test_an_event_is_yielded_as_soon_as_its_blank_line_ends() -> None:
    parser = Parser()
    assert list(parser.feed(b"data: x\r\r")) == [message("x")]
    assert list(parser.feed(b"\ndata: y\r\n\r")) == [message("y")]
    assert list(parser.feed(b"\n")) == []


WHOLE = BOM + b"".join(stream for stream, _ in RULES.values())
PIECES = st.sampled_from(
    [*(bytes([byte]) for byte in b"\r\n: x\x00" + BOM), b"data", b"event", b"id", b"\n\n", b"\xff"]
)


@given(st.lists(st.integers(0, len(WHOLE)), max_size=12))
def test_events_are_the_same_however_the_bytes_are_cut(cuts: list[int]) -> None:
    assert list(parse(cut(WHOLE, cuts))) == by_the_standard(WHOLE)


@given(st.lists(PIECES, max_size=40).map(b"".join), st.data())
def test_any_bytes_are_parsed_as_the_standard_says(stream: bytes, data: st.DataObject) -> None:
    cuts = data.draw(st.lists(st.integers(0, len(stream)), max_size=8))
    assert list(parse(cut(stream, cuts))) == by_the_standard(stream)


def cut(stream: bytes, cuts: list[int]) -> list[bytes]:
    edges = [0, *sorted(cuts), len(stream)]
    return [stream[start:end] for start, end in pairwise(edges)]


def by_the_standard(stream: bytes) -> list[ServerSentEvent]:
    """Parse a whole stream with the standard's own steps and buffers."""
    events = []
    data_buffer, event_type_buffer = "", ""
    text = stream.decode("utf-8", "replace").removeprefix("\ufeff")
    *lines, _unfinished = re.split("\r\n|\n|\r", text)
    for line in lines:
        if line == "":
            if data_buffer != "":
                event_type = "message" if event_type_buffer == "" else event_type_buffer
                events.append(ServerSentEvent(event_type, data_buffer.removesuffix("\n")))
            data_buffer, event_type_buffer = "", ""
        elif not line.startswith(":"):
            field, value = line, ""
            if ":" in line:
                field, value = line.split(":", 1)
                value = value.removeprefix(" ")
            if field == "event":
                event_type_buffer = value
            elif field == "data":
                data_buffer += value + "\n"
    return events
