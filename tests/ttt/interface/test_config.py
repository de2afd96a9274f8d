"""Settings out of range, or that contradict each other, are refused by name."""

import pytest

from refine_server.ttt.interface.config import AdaptConfig


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"steps": -1}, "steps"),
        ({"chunks": 0}, "chunks"),
        ({"learning_rate": 0.0}, "learning_rate"),
        ({"reward": "luck"}, "reward"),
        ({"unknown": 1}, "unknown"),
        ({"prefix": "full", "ntp_on": "spans"}, "ntp_on"),
        ({"selection": "query"}, "selection='query' needs prefix='local'"),
        ({"prefix": "local", "spans_as": "answer"}, "spans_as='answer' needs selection"),
        ({"chunks": 128, "rollouts": 32}, "chunks"),
        ({"chunks": 128, "rollouts": 4, "demonstration": True}, "chunks"),
    ],
)
def test_settings_out_of_range_are_refused_by_name(change: dict[str, object], field: str) -> None:
    with pytest.raises(ValueError, match=field):
        AdaptConfig(**change)
