from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from refine_server.clients.sse import ServerSentEvent, parse

STREAM = (
    b": ping\r\n\r\nevent: a\r\ndata: one\r\ndata: two\r\n\r\n"
    b"data:\xe2\x80\xa8x\x85\n\nid: 7\nevent: empty\n\nevent: b\rdata: {}\r\r"
    b"event: cut\ndata: short"
)
EVENTS = [
    ServerSentEvent("a", "one\ntwo"),
    ServerSentEvent("message", "\u2028x\ufffd"),
    ServerSentEvent("b", "{}"),
]


@given(st.lists(st.integers(0, len(STREAM)), max_size=12))
def test_events_are_the_same_however_the_bytes_are_cut(cuts: list[int]) -> None:
    edges = [0, *sorted(cuts), len(STREAM)]
    chunks = [STREAM[a:b] for a, b in pairwise(edges)]
    assert list(parse(chunks)) == EVENTS
