"""Plots of a report's figures."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullFormatter

from refine_server.benchmarks.report.stats import Interval

COLOURS = {"none": "#8a94a3", "naive": "#8a94a3", "ntp": "#e08a1e", "refine": "#1f6fb2"}
OTHER_COLOURS = ("#3a8f5c", "#9b59b6", "#c0392b")
"""Colours that colour-blind readers can tell apart, also in print (after Okabe and Ito)."""


def colour(name: str, number: int = 0) -> str:
    """Return the colour of an objective, or the ``number``-th of the other colours."""
    return COLOURS.get(name, OTHER_COLOURS[number % len(OTHER_COLOURS)])


def bars(
    figure: Figure, labels: Sequence[str], series: Mapping[str, Sequence[Interval]], y_label: str
) -> None:
    """Draw groups of bars with intervals: one group a label, one bar a series."""
    axes = _axes(figure)
    at = np.arange(len(labels))
    width = 0.8 / len(series)
    for number, (name, intervals) in enumerate(series.items()):
        means = np.array([i.mean for i in intervals])
        errors = np.array(
            [[i.mean - i.low for i in intervals], [i.high - i.mean for i in intervals]]
        )
        axes.bar(
            at + (number - (len(series) - 1) / 2) * width,
            means,
            width * 0.92,
            yerr=np.maximum(errors, 0.0),
            error_kw={"elinewidth": 1, "capsize": 2, "ecolor": "#39424e"},
            color=colour(name, number),
            label=name,
        )
    slanted = len(labels) > 5 or max(map(len, labels)) > 14
    axes.set_xticks(at, labels, rotation=25 if slanted else 0, ha="right" if slanted else "center")
    axes.set_ylabel(y_label)
    axes.set_ylim(bottom=0)
    # The legend is below the axes, because bars leave no corner free.
    figure.legend(loc="outside lower center", ncols=len(series), frameon=False)


def points(figure: Figure, series: Mapping[str, tuple[float, Interval]]) -> None:
    """Draw score against seconds, with intervals; a line joins the Pareto front."""
    axes = _axes(figure)
    for number, (name, (seconds, score)) in enumerate(series.items()):
        errors = [[max(score.mean - score.low, 0)], [max(score.high - score.mean, 0)]]
        axes.errorbar(
            [seconds],
            [score.mean],
            yerr=errors,
            fmt="o",
            markersize=9,
            capsize=3,
            color=colour(name, number),
            label=name,
        )
    front = sorted((seconds, score.mean) for seconds, score in pareto(series).values())
    axes.plot(*zip(*front, strict=True), color="#39424e", linewidth=1, linestyle="--", zorder=0)
    axes.set_xlabel("seconds for an answer (median)")
    axes.set_ylabel("score")
    axes.set_xlim(left=0)
    _legend(axes)


def pareto(
    series: Mapping[str, tuple[float, Interval]],
) -> dict[str, tuple[float, Interval]]:
    """Return the series that no other one beats in both seconds and mean score."""

    def beaten(name: str) -> bool:
        seconds, score = series[name]
        return any(
            s <= seconds and i.mean >= score.mean and (s < seconds or i.mean > score.mean)
            for other, (s, i) in series.items()
            if other != name
        )

    return {name: point for name, point in series.items() if not beaten(name)}


def distribution(figure: Figure, series: Mapping[str, Sequence[float]], x_label: str) -> None:
    """Draw the share of values up to x, one curve a series."""
    axes = _axes(figure)
    for number, (name, values) in enumerate(series.items()):
        axes.ecdf(values, color=colour(name, number), linewidth=2, label=name)
    axes.set_xlabel(x_label)
    axes.set_ylabel("share of answers")
    axes.set_xlim(left=0)
    _legend(axes)


def curves(figure: Figure, panels: Mapping[str, Mapping[str, Sequence[Sequence[float]]]]) -> None:
    """Draw panels side by side; each has the median over questions by step, middle half shaded.

    Args:
        panels: series by panel title; a series has the values of all questions for each step.
    """
    for place, (title, series) in enumerate(panels.items(), 1):
        axes = _dressed(figure.add_subplot(1, len(panels), place))
        for number, (name, by_step) in enumerate(series.items()):
            steps = np.arange(1, len(by_step) + 1)
            low, middle, high = np.transpose([np.percentile(v, [25, 50, 75]) for v in by_step])
            hue = colour(name, number)
            axes.plot(steps, middle, color=hue, linewidth=2, label=name, marker="o", markersize=3)
            axes.fill_between(steps, low, high, color=hue, alpha=0.18, linewidth=0)
        axes.set_title(title)
        axes.set_xlabel("step")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        _legend(axes)


def lines(
    figure: Figure, panels: Mapping[str, Mapping[str, Mapping[int, float]]], y_label: str
) -> None:
    """Draw panels in two columns; each has values by x, a line a series, both axes logarithmic."""
    rows = -(-len(panels) // 2)
    for place, (title, series) in enumerate(panels.items(), 1):
        axes = _dressed(figure.add_subplot(rows, 2, place))
        for number, (name, values) in enumerate(series.items()):
            xs, ys = zip(*sorted(values.items()), strict=True)
            axes.plot(xs, ys, color=colour(name, number), linewidth=2, marker="o", label=name)
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        low, high = axes.get_ylim()  # at least a decade, or noise looks like growth
        middle = (low * high) ** 0.5
        axes.set_ylim(min(low, middle / 4), max(high, middle * 4))
        axes.yaxis.set_minor_formatter(NullFormatter())
        ticks = sorted({x for values in series.values() for x in values})
        axes.set_xticks(ticks, [f"{x:,}" for x in ticks])
        axes.set_xlabel(title)
        axes.set_ylabel(y_label)
        _legend(axes)


def _axes(figure: Figure) -> Axes:
    return _dressed(figure.add_subplot())


def _dressed(axes: Axes) -> Axes:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#e7ebf0")
    axes.set_axisbelow(True)
    return axes


def _legend(axes: Axes) -> None:
    axes.legend(frameon=False, loc="best")
