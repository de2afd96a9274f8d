"""The number of replicas follows the seconds of work that wait."""

from types import SimpleNamespace

import pytest

from refine_server.server.replicas.scaling import scale_on_queued_seconds


@pytest.mark.parametrize(
    ("queued", "busy", "now", "wanted"),
    [
        ([0.0], [1.0], 1, 1),  # it has work, and nothing waits
        ([9.0], [1.0], 1, 1),
        ([11.0], [1.0], 1, 2),
        ([30.0, 31.0], [1.0, 1.0], 2, 7),
        ([0.5, 0.0], [1.0, 0.0], 2, 2),  # something waits
        ([0.0, 0.0], [1.0, 1.0], 2, 2),  # both have work
        ([0.0, 0.0], [1.0, 0.0], 2, 1),
        ([0.0, 0.0, 0.0], [0.0, 0.0, 0.0], 3, 2),  # one at a time
    ],
)
def test_what_waits_decides(queued: list[float], busy: list[float], now: int, wanted: int) -> None:
    reported = {
        "queued_seconds": dict(enumerate(queued)),
        "is_busy": dict(enumerate(busy)),
    }
    context = SimpleNamespace(aggregated_metrics=reported, target_num_replicas=now)
    assert scale_on_queued_seconds(context) == (wanted, {})


def test_before_any_report_nothing_changes() -> None:
    context = SimpleNamespace(aggregated_metrics={}, target_num_replicas=2)
    assert scale_on_queued_seconds(context) == (2, {})
