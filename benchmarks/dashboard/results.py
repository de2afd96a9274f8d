"""What the dashboard's queries return of one server."""

from collections.abc import Iterator
from dataclasses import dataclass

from refine_server.benchmarks.dashboard.panels import SECTIONS, Panel, Query
from refine_server.benchmarks.dashboard.prometheus import Prometheus, Series

RATE_SECONDS = 20
"""What Grafana's ``$__rate_interval`` stands for: several scrapes."""
VARIABLES = {"$job": ".*", "$instance": ".*", "$__rate_interval": f"{RATE_SECONDS}s"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Result:
    """What one query of a panel returned."""

    section: str
    panel: Panel
    query: Query
    series: list[Series]
    """With at least one number each."""


def results(prometheus: Prometheus, start: float, end: float) -> Iterator[Result]:
    """Run the queries of all panels for a span of time, in seconds since 1970."""
    for section, panels in SECTIONS.items():
        for panel in panels:
            for query in panel.queries:
                expression = query.expression
                for variable, value in VARIABLES.items():
                    expression = expression.replace(variable, value)
                series = prometheus.query(expression, start, end, step=1.0)
                yield Result(section=section, panel=panel, query=query, series=series)
