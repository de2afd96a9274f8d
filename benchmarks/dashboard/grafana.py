"""The dashboard as Grafana reads it, made with the Grafana Foundation SDK."""

from grafana_foundation_sdk.builders import (
    common,
    dashboard,
    prometheus,
    stat,
    timeseries,
)
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.common import StackingMode
from grafana_foundation_sdk.models.dashboard import (
    DataSourceRef,
    GridPos,
    VariableOption,
    VariableRefresh,
)

from refine_server.benchmarks.dashboard.panels import SECTIONS, Panel

WIDTH = 24
"""Columns of Grafana's grid."""
GRAPHS_IN_ROW = 3
GRAPH_HEIGHT = 8
NUMBER_HEIGHT = 4
SOURCE = DataSourceRef(type_val="prometheus", uid="${datasource}")


def dashboard_json() -> str:
    """Return the dashboard in JSON, as a file that Grafana provisions."""
    built = (
        dashboard.Dashboard("refine-server")
        .uid("refine-server")
        .description("Requests, answers, load, adaptation, memory and store of refine-server.")
        .tags(["refine-server"])
        .refresh("30s")
        .time("now-1h", "now")
        .timezone("browser")
        .with_variable(
            dashboard.DatasourceVariable("datasource").label("Source").type("prometheus")
        )
    )
    for name in ("job", "instance"):
        built = built.with_variable(_servers(name))
    top = 0  # row of the grid that is free
    last = 0  # id of the newest panel
    for title, panels in SECTIONS.items():
        heading = GridPos(h=1, w=WIDTH, x=0, y=top)
        built = built.with_row(dashboard.Row(title).grid_pos(heading))
        top += 1
        are_numbers = panels[0].is_number
        height = NUMBER_HEIGHT if are_numbers else GRAPH_HEIGHT
        in_row = len(panels) if are_numbers else GRAPHS_IN_ROW
        width = WIDTH // in_row
        for number, panel in enumerate(panels):
            row, column = divmod(number, in_row)
            place = GridPos(h=height, w=width, x=column * width, y=top + row * height)
            last += 1
            made = (_number if are_numbers else _graph)(panel).id(last).grid_pos(place)
            built = built.with_panel(made)
        top += -(-len(panels) // in_row) * height
    return JSONEncoder(sort_keys=True, indent=2).encode(built.build()) + "\n"


def _servers(label: str) -> dashboard.QueryVariable:
    """Return the variable by which the viewer chooses servers; all of them at first."""
    chosen = ', job=~"$job"' if label == "instance" else ""
    return (
        dashboard.QueryVariable(label)
        .datasource(SOURCE)
        .query(f'label_values(refine_ready{{instance!=""{chosen}}}, {label})')
        .refresh(VariableRefresh.ON_TIME_RANGE_CHANGED)
        .multi(True)
        .include_all(True)
        .all_value(".*")
        .current(VariableOption(selected=True, text="All", value="$__all"))
    )


def _graph(panel: Panel) -> timeseries.Panel:
    stacking = StackingMode.NORMAL if panel.is_stacked else StackingMode.NONE
    graph = (
        timeseries.Panel()
        .title(panel.title)
        .description(panel.description)
        .unit(panel.unit)
        .datasource(SOURCE)
        .fill_opacity(30 if panel.is_stacked else 0)
        .stacking(common.StackingConfig().mode(stacking))
    )
    for target in _targets(panel):
        graph = graph.with_target(target)
    return graph


def _number(panel: Panel) -> stat.Panel:
    shown = (
        stat.Panel()
        .title(panel.title)
        .description(panel.description)
        .unit(panel.unit)
        .datasource(SOURCE)
        .reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
    )
    for target in _targets(panel):
        shown = shown.with_target(target)
    return shown


def _targets(panel: Panel) -> list[prometheus.Dataquery]:
    return [
        prometheus.Dataquery()
        .ref_id(chr(ord("A") + number))
        .expr(query.expression)
        .legend_format(query.legend)
        for number, query in enumerate(panel.queries)
    ]
