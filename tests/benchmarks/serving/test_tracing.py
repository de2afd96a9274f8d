"""``bench tracing``: three servers take turns, of which one is traced."""

from refine_server.benchmarks.serving.tracing import OFF, ON, WAYS, compare


def test_each_way_is_measured_and_compared_with_the_first() -> None:
    result = compare("tiny", requests=1, rounds=2)
    assert all(result[f"{way}_cpu_seconds"] > 0 for way in WAYS)
    for way in (OFF, ON):
        low, high = result[f"{way}_ratio_range"]
        assert 0 < low <= result[f"{way}_ratio"] <= high
