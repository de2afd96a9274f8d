"""The page of all metrics, in Markdown."""

from collections.abc import Iterator

from prometheus_client.metrics import MetricWrapperBase

from refine_server.server.app import create_app
from refine_server.server.metrics.declarations import Metrics
from refine_server.server.settings import Settings

HEAD = """# Metrics

What `/metrics` exports in Prometheus' format. Labels have few values: routes, statuses, codes of
errors, names of API keys and names of the code, never an id, a path or a text of a request. A
histogram `x` has the series `x_bucket`, `x_sum` and `x_count`; one whose values may be negative has
no `x_sum` in OpenMetrics.
[alerts.md](alerts.md) uses some of them, and `deploy/grafana/` shows nearly all.

| metric | type | labels | |
|---|---|---|---|
"""


def metrics_page() -> str:
    """Return the page: one row for each metric, by name; those of Python in one sentence."""
    app = create_app(Settings(model="tiny", store="none"))
    table = "".join(f"| {' | '.join(row)} |\n" for row in sorted(_rows(app.state.metrics)))
    return (
        f"{HEAD}{table}\nBeside these there are the metrics that prometheus_client has for every "
        "Python program:\n`process_…` (CPU, memory, open files, start) and `python_info`.\n"
    )


def _rows(metrics: Metrics) -> Iterator[tuple[str, str, str, str]]:
    declared = (m for m in vars(metrics).values() if isinstance(m, MetricWrapperBase))
    # A metric has no series, and so no labels to be seen, before it was used with labels.
    labels = {f.name: m._labelnames for m in declared for f in m.describe()}
    for family in metrics.registry.collect():
        if not family.name.startswith("refine_"):
            continue
        seen = dict.fromkeys(name for sample in family.samples for name in sample.labels)
        names = labels.get(family.name) or [name for name in seen if name != "le"]
        suffix = {"counter": "_total", "info": "_info"}.get(family.type, "")
        told = ", ".join(f"`{name}`" for name in names)
        yield f"`{family.name}{suffix}`", family.type, told, family.documentation
