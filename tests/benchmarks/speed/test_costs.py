"""``bench costs``: every requested point is measured and plotted."""

from pathlib import Path

import pytest

from refine_server.benchmarks.speed import costs


def test_all_points_are_measured_except_long_naive_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(costs, "MOST_REREAD", 1500)  # 32 prefixes of 64 tokens, not of 128
    panels = costs.CostBench("tiny", repeats=1).run([64, 128], [1, 2], 64, [1, 2], 64)
    assert panels.keys() == costs.PANELS.keys()
    for series in panels.values():
        assert all(seconds > 0 for points in series.values() for seconds in points.values())
    assert set(panels["step_by_tokens"]["refine"]) == {64, 128}
    assert set(panels["step_by_tokens"]["naive"]) == {64}
    assert set(panels["step_by_rollouts"]["ntp"]) == {8, 16}
    assert set(panels["share_by_requests"]["token"]) == {1, 2}
    costs.draw(panels, tmp_path / "made" / "costs.png", "tiny, n = 1")
    assert (tmp_path / "made" / "costs.png").read_bytes().startswith(b"\x89PNG")
