"""What a query-side adaptation reads, and which layers it supervises."""

import pytest

from refine_server.ttt.query_side.adapt import equal_spans, supervised_layers
from refine_server.ttt.refine.inputs.rows import Span


@pytest.mark.parametrize(
    ("evidence", "end", "spans"),
    [
        ([(10, 30), (50, 62)], 100, [(10, 22), (50, 62)]),
        ([(0, 20)], 100, [(2, 22)]),
        ([(95, 100)], 100, [(90, 100)]),
        ([(95, 98), (96, 99)], 100, [(90, 100)]),
        ([(0, 4)], 11, []),
        ([], 100, []),
    ],
    ids=["cut to one length", "behind two tokens", "shifted", "merged", "no room", "none"],
)
def test_spans_have_one_length_and_hold_a_rollout(
    evidence: list[tuple[int, int]], end: int, spans: list[tuple[int, int]]
) -> None:
    given = [Span(*span) for span in evidence]
    assert equal_spans(given, end, 5) == [Span(*span) for span in spans]


def test_the_middle_layer_with_attention_is_supervised() -> None:
    assert supervised_layers(range(30)) == (15,)
    assert supervised_layers([3, 7, 11]) == (7,)
    assert supervised_layers([5]) == (5,)
