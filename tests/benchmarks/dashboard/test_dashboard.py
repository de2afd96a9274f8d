"""The Grafana dashboard: as committed, and answered by a real Prometheus for every panel."""

import json
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from refine_server.benchmarks.dashboard import grafana
from refine_server.benchmarks.dashboard.cli import RULES
from refine_server.benchmarks.dashboard.panels import SECTIONS
from refine_server.benchmarks.dashboard.picture import draw
from refine_server.benchmarks.dashboard.prometheus import Prometheus, scraping
from refine_server.benchmarks.dashboard.results import Result, results
from refine_server.benchmarks.dashboard.traffic import Traffic, write_keys
from refine_server.server.app import create_app
from refine_server.server.settings import Settings
from support.live_server import serving, wait_for

ROOT = Path(__file__).parents[3]
COMMITTED = ROOT / "deploy" / "grafana" / "dashboards" / "refine-server.json"

pytestmark = pytest.mark.skipif(
    shutil.which("prometheus") is None and "CI" not in os.environ,
    reason="needs Debian's package prometheus",
)


OF_THE_TRAFFIC = {
    ("Refused requests by reason and key", "invalid_api_key -"),
    ("Refused requests by reason and key", "unknown_field dashboard"),
    ("Refused requests by reason and key", "quota_requests_per_minute limited"),
    ("Requests by endpoint", "/v1/answers"),
    ("Base weights kept, by reason", "max_seconds"),
    ("Answers by weights", "adapted"),
    ("Memory by kind", "model"),
}
"""Panels and series that the traffic brings about."""


def legends(results: list[Result]) -> set[tuple[str, str]]:
    """Return the titles of the panels with the names of their series."""
    return {
        (result.panel.title, series.legend(result.query.legend))
        for result in results
        for series in result.series
    }


def test_the_committed_dashboard_is_what_the_code_makes() -> None:
    """After a change: refine-server bench dashboard --json deploy/grafana/dashboards/…"""
    assert COMMITTED.read_text() == grafana.dashboard_json()


def test_panels_are_told_apart_and_do_not_overlap() -> None:
    panels = json.loads(COMMITTED.read_text())["panels"]
    ids = [panel["id"] for panel in panels if panel["type"] != "row"]
    assert len(set(ids)) == len(ids) == sum(map(len, SECTIONS.values()))
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        at = panel["gridPos"]
        cells = {(at["x"] + x, at["y"] + y) for x in range(at["w"]) for y in range(at["h"])}
        assert max(x for x, _ in cells) < grafana.WIDTH
        assert not cells & taken
        taken |= cells


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Result]]:
    """What the panels' queries return of a server with the tiny model after some traffic."""
    folder = tmp_path_factory.mktemp("dashboard")
    key, limited_key = write_keys(folder / "keys.toml")
    settings = Settings(
        model="tiny",
        store=(folder / "store").as_uri(),
        api_keys_file=folder / "keys.toml",
        shutdown_seconds=0.3,
    )
    rules = [ROOT / path for path in RULES]
    with (
        serving(create_app(settings)) as url,
        scraping(url.removeprefix("http://"), key, rules, folder) as prometheus,
    ):
        traffic, began = Traffic(url, key, limited_key), time.time()
        for _ in range(2):
            traffic.send_round()
        yield until_two_scrapes(prometheus, began)


def until_two_scrapes(prometheus: Prometheus, began: float) -> list[Result]:
    """Wait for the scrapes that a rate needs; a query without a number is given thirty seconds."""
    last: list[Result] = []

    def are_there() -> bool:
        last[:] = results(prometheus, began, time.time())
        return all(result.series for result in last) and legends(last) >= OF_THE_TRAFFIC

    with suppress(AssertionError):  # the test names the queries
        wait_for(are_there, 30)
    return last


def test_every_query_of_every_panel_has_a_result(found: list[Result]) -> None:
    empty = [f"{result.panel.title}: {result.query.expression}" for result in found]
    empty = [name for name, result in zip(empty, found, strict=True) if not result.series]
    assert empty == []
    assert {result.panel.title for result in found} == {
        panel.title for panels in SECTIONS.values() for panel in panels
    }


def test_the_results_are_those_of_the_traffic(found: list[Result]) -> None:
    assert legends(found) >= OF_THE_TRAFFIC


def test_the_picture_shows_every_panel(found: list[Result], tmp_path: Path) -> None:
    figure = draw(found)
    figure.savefig(tmp_path / "panels.png", dpi=40)
    shown = {axes.get_title(loc="left") for part in figure.subfigs for axes in part.axes}
    shown |= {text.get_text() for part in figure.subfigs for a in part.axes for text in a.texts}
    assert {panel.title for panels in SECTIONS.values() for panel in panels} <= shown
