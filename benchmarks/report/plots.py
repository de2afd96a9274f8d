"""Plots of a report's figures."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullFormatter

from refine_server.benchmarks.report.stats import Interval

COLOURS = {"none": "#8a94a3", "naive": "#8a94a3", "ntp": "#e08a1e", "refine": "#1f6fb2"}
OTHER_COLOURS = ("#3a8f5c", "#9b59b6", "#c0392b", "#56b4e9", "#7a5c2e", "#e377c2", "#111111")
"""Colours that colour-blind readers can tell apart, also in print (after Okabe and Ito)."""

DARK = "#39424e"
NO_INTERVAL = "no interval is drawn where n = 1 or all values are equal"


def colour(name: str, number: int = 0) -> str:
    """Return the colour of an objective, or the ``number``-th of the other colours."""
    return COLOURS.get(name, OTHER_COLOURS[number % len(OTHER_COLOURS)])


def bars(
    figure: Figure, labels: Sequence[str], series: Mapping[str, Sequence[Interval]], y_label: str
) -> None:
    """Draw groups of bars with intervals and sample sizes: a group a label, a bar a series.

    Where there is no interval none is drawn, and a line below the axes says so.
    """
    axes = _axes(figure)
    at = np.arange(len(labels))
    width = 0.8 / len(series)
    for number, (name, intervals) in enumerate(series.items()):
        xs = at + (number - (len(series) - 1) / 2) * width
        means = [i.mean for i in intervals]
        axes.bar(xs, means, width * 0.92, color=colour(name, number), label=name)
        for x, of in zip(xs, intervals, strict=True):
            if (ends := distances(of)) is not None:
                axes.errorbar(x, of.mean, ends, fmt="none", ecolor=DARK, elinewidth=1, capsize=2)
    counts = [{i.n for i in of} for of in zip(*series.values(), strict=True)]
    named = [
        f"{label}\nn = {' to '.join(map(str, sorted(n)))}"
        for label, n in zip(labels, counts, strict=True)
    ]
    slanted = len(labels) > 5 or max(map(len, labels)) > 14
    axes.set_xticks(at, named, rotation=25 if slanted else 0, ha="right" if slanted else "center")
    axes.set_ylabel(y_label)
    axes.set_ylim(bottom=0)
    if all(i.mean == 0 for of in series.values() for i in of):
        axes.set_ylim(top=100)  # else the axis would be around nothing
    if any(distances(i) is None for of in series.values() for i in of):
        axes.set_xlabel(NO_INTERVAL, fontsize="small", color="#566274")
    # The legend is below the axes, because bars leave no corner free.
    figure.legend(loc="outside lower center", ncols=min(len(series), 4), frameon=False)


def distances(of: Interval) -> list[list[float]] | None:
    """Return how far the ends of an interval are from its mean, for ``yerr``; None for none."""
    if of.low is None or of.high is None:
        return None
    return [[max(of.mean - of.low, 0.0)], [max(of.high - of.mean, 0.0)]]


def points(figure: Figure, series: Mapping[str, tuple[float, Interval]]) -> None:
    """Draw score against seconds, with intervals if there are any, and the Pareto front."""
    axes = _axes(figure)
    for number, (name, (seconds, score)) in enumerate(series.items()):
        axes.errorbar(
            [seconds],
            [score.mean],
            yerr=distances(score),
            fmt="o",
            markersize=9,
            capsize=3,
            color=colour(name, number),
            label=f"{name} (n = {score.n})" + (f", {score.why_none}" if score.why_none else ""),
        )
    front = sorted((seconds, score.mean) for seconds, score in pareto(series).values())
    axes.plot(*zip(*front, strict=True), color="#39424e", linewidth=1, linestyle="--", zorder=0)
    axes.set_xlabel("seconds for an answer (median)")
    axes.set_ylabel("score")
    axes.set_xlim(left=0)
    if front[-1][1] == 0:
        axes.set_ylim(-2, 100)  # else the axis would be around nothing
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


def distribution(
    figure: Figure, series: Mapping[str, tuple[Sequence[float], int]], x_label: str
) -> None:
    """Draw the share of requests that were answered within x, one curve a series.

    Args:
        figure: an empty figure.
        series: the values of the requests that were answered, and the number of all requests: a
            curve ends below 1 where some were not.
        x_label: what the values are, with their unit.
    """
    axes = _axes(figure)
    end = max(max(values) for values, _ in series.values())
    for number, (name, (values, total)) in enumerate(series.items()):
        xs = [0.0, *sorted(values), end]
        shares = [0.0, *(np.arange(1, len(values) + 1) / total), len(values) / total]
        n = f"n = {total}" if len(values) == total else f"{len(values)} of {total} answered"
        hue = colour(name, number)
        axes.step(xs, shares, where="post", color=hue, linewidth=2, label=f"{name} ({n})")
    axes.set_xlabel(x_label)
    axes.set_ylabel("share of requests")
    axes.set_xlim(left=0)
    axes.set_ylim(0, 1.02)
    _legend(axes)


def curves(figure: Figure, panels: Mapping[str, Mapping[str, Sequence[Sequence[float]]]]) -> None:
    """Draw panels side by side; each has the median over questions by step, middle half shaded.

    A question that made fewer steps than others keeps its last value. Without it, the median of
    later steps would be over other questions than that of earlier ones.

    Args:
        figure: an empty figure.
        panels: series by panel title; a series has the values by step of each question.
    """
    for place, (title, series) in enumerate(panels.items(), 1):
        axes = _dressed(figure.add_subplot(1, len(panels), place))
        for number, (name, questions) in enumerate(series.items()):
            by_step = carried_forward(questions)
            steps = np.arange(1, len(by_step) + 1)
            low, middle, high = np.transpose([np.percentile(v, [25, 50, 75]) for v in by_step])
            hue, label = colour(name, number), f"{name} (n = {len(questions)})"
            axes.plot(steps, middle, color=hue, linewidth=2, label=label, marker="o", markersize=3)
            axes.fill_between(steps, low, high, color=hue, alpha=0.18, linewidth=0)
        axes.set_title(title)
        axes.set_xlabel("step")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        _legend(axes)


def carried_forward(questions: Sequence[Sequence[float]]) -> list[list[float]]:
    """Return the values of all questions for each step; one that has ended keeps its last value."""
    longest = max(map(len, questions), default=0)
    return [[of[min(step, len(of) - 1)] for of in questions] for step in range(longest)]


def lines(
    figure: Figure,
    panels: Mapping[tuple[str, str], Mapping[str, Mapping[int, float]]],
    y_label: str,
) -> None:
    """Draw panels in two columns; each has values by x, a line a series, both axes logarithmic.

    Args:
        figure: an empty figure.
        panels: series by panel; a panel has a title and a label of its x axis.
        y_label: of all panels.
    """
    rows = -(-len(panels) // 2)
    for place, ((title, x_label), series) in enumerate(panels.items(), 1):
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
        axes.set_title(title)
        axes.set_xlabel(x_label)
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
