"""A picture of the dashboard's panels, drawn from what their queries returned."""

import itertools
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, PercentFormatter

from refine_server.benchmarks.dashboard.panels import Panel, Unit
from refine_server.benchmarks.dashboard.results import Result

COLUMNS = 3
INCHES = 5.2, 2.7
"""Width and height of one panel."""
MAX_NAMES = 8
"""Series that a legend names."""
GREY = "#566274"


def draw(found: Sequence[Result]) -> Figure:
    """Draw all panels: a row of numbers, then the graphs, in the dashboard's order."""
    by_panel = [
        (panel, list(group)) for panel, group in itertools.groupby(found, lambda r: r.panel)
    ]
    numbers = [(panel, group) for panel, group in by_panel if panel.is_number]
    graphs = [(panel, group) for panel, group in by_panel if not panel.is_number]
    rows = -(-len(graphs) // COLUMNS)
    figure = Figure(figsize=(INCHES[0] * COLUMNS, INCHES[1] * rows + 1), layout="constrained")
    grid = figure.add_gridspec(2, 1, height_ratios=[1, INCHES[1] * rows])
    above, below = figure.add_subfigure(grid[0]), figure.add_subfigure(grid[1])
    for axes, (panel, group) in zip(above.subplots(1, len(numbers)), numbers, strict=True):
        _write_number(axes, panel, group)
    places = below.subplots(rows, COLUMNS).flat
    for axes, (panel, group) in zip(places, graphs, strict=False):
        _draw_graph(axes, panel, group)
    for axes in places:  # that are left
        axes.axis("off")
    return figure


def _write_number(axes: Axes, panel: Panel, group: Sequence[Result]) -> None:
    newest = [series.values[-1] for result in group for series in result.series]
    axes.axis("off")
    axes.text(0.5, 0.72, panel.title, ha="center", color=GREY, transform=axes.transAxes)
    text = _formatted(newest[0], panel.unit) if newest else "no data"
    axes.text(0.5, 0.1, text, ha="center", fontsize=20, transform=axes.transAxes)


def _draw_graph(axes: Axes, panel: Panel, group: Sequence[Result]) -> None:
    lines = [
        (series.legend(result.query.legend), series) for result in group for series in result.series
    ]
    began = min(series.times[0] for _, series in lines)
    if panel.is_stacked:
        times = sorted({at for _, series in lines for at in series.times})
        values = [
            [dict(zip(s.times, s.values, strict=True)).get(at, 0.0) for at in times]
            for _, s in lines
        ]
        axes.stackplot([at - began for at in times], values, labels=[name for name, _ in lines])
    else:
        for name, series in lines:
            axes.plot([at - began for at in series.times], series.values, label=name)
    axes.set_title(panel.title, fontsize="medium", loc="left")
    axes.tick_params(labelsize="small")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda seconds, _: f"{seconds:g} s"))
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    if all(value >= 0 for _, series in lines for value in series.values):
        axes.set_ylim(bottom=0)
    axes.yaxis.set_major_formatter(_formatter(panel.unit))
    handles, names = axes.get_legend_handles_labels()
    axes.legend(handles[:MAX_NAMES], names[:MAX_NAMES], fontsize=6, loc="best", framealpha=0.6)


def _formatter(unit: Unit) -> FuncFormatter | PercentFormatter:
    if unit == "percentunit":
        return PercentFormatter(1.0)
    return FuncFormatter(lambda value, _: _formatted(value, unit))


def _formatted(value: float, unit: Unit) -> str:
    match unit:
        case "bytes":
            return f"{value / 2**20:,.0f} MiB"
        case "s":
            return f"{value:.3g} s"
        case "percentunit":
            return f"{value:.1%}"
        case "reqps":
            return f"{value:.3g}/s"
        case _:
            return f"{value:.3g}"
