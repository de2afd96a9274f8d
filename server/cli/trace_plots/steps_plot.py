"""Curves of the steps, and how far they moved each layer."""

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from refine_server.server.cli.trace_plots.style import (
    BLUE,
    GREEN,
    INK,
    LINE,
    ORANGE,
    SOFT,
    figure,
    tidy,
)


def draw_steps(response: dict[str, Any]) -> Figure:
    """Draw what each step measured; a term that is 0 in all steps is left out."""
    report = response["adaptation_report"]
    steps = report["steps"]
    curves = [
        ("loss", ["loss"]),
        ("next-token loss, nats", ["ntp_loss"]),
        ("reward, mean and spread", ["reward_mean"]),
        ("KL from the base model", ["kl"]),
        ("attention, KL from its target", ["attention"]),
        ("gradient norm", ["grad_norm"]),
    ]
    shown = [(title, names) for title, names in curves if _varies(steps, names[0])]
    panels = len(shown) + bool(report["held_out"])
    columns = min(panels, 3)
    rows = -(-panels // columns)
    accepted = report["accepted_step"]
    said = f"{len(steps)} steps; the answer uses the weights of step {accepted}"
    if accepted == 0:
        said = f"{len(steps)} steps; the base weights answer"
    made = figure(11, 0.9 + 2.1 * rows, "The steps", said)
    height = made.get_figheight()
    grid = made.add_gridspec(
        rows, columns, left=0.06, right=0.985, top=1 - 0.95 / height, bottom=0.42 / height,
        hspace=0.55, wspace=0.22,
    )  # fmt: skip
    numbers = [step["step"] for step in steps]
    for n, (title, [name]) in enumerate(shown):
        axes = made.add_subplot(grid[n // columns, n % columns])
        values = _values(steps, name)
        if name == "reward_mean":
            spread = _values(steps, "reward_std")
            axes.fill_between(
                numbers, values - spread, values + spread, color=BLUE, alpha=0.15, lw=0
            )
        axes.plot(numbers, values, color=BLUE, marker="o", ms=3.5, lw=1.6)
        _finish(axes, title, accepted)
    if report["held_out"]:
        n = len(shown)
        _draw_held_out(made.add_subplot(grid[n // columns, n % columns]), report, accepted)
    return made


def _draw_held_out(axes: Axes, report: dict[str, Any], accepted: int) -> None:
    results = report["held_out"]
    numbers = [result["step"] for result in results]
    axes.plot(numbers, _values(results, "loss"), color=ORANGE, marker="o", ms=3.5, lw=1.6)
    other = axes.twinx()
    other.plot(numbers, _values(results, "accuracy"), color=GREEN, marker="s", ms=3.5, lw=1.2)
    other.tick_params(colors=GREEN, labelsize=8, length=3)
    for spine in other.spines.values():
        spine.set_visible(False)
    _finish(axes, "held-out loss (orange), accuracy (green)", accepted)
    axes.tick_params(axis="y", colors=ORANGE)


def _finish(axes: Axes, title: str, accepted: int) -> None:
    tidy(axes, title)
    axes.grid(axis="y", color=LINE, lw=0.6)
    axes.set_axisbelow(True)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if accepted:
        axes.axvline(accepted, color=SOFT, lw=0.8, ls=":")
    axes.set_xlabel("step", size=8, color=SOFT, labelpad=1)


def draw_layers(response: dict[str, Any]) -> Figure:
    """Draw the change of each layer's weights after each step, relative to the base weights."""
    steps = [step for step in response["adaptation_report"]["steps"] if step["trace"] is not None]
    layers = [change["layer"] for change in steps[0]["trace"]["weights"]]
    relative = all(w["relative"] is not None for s in steps for w in s["trace"]["weights"])
    name, unit = ("relative", "share of the base weights' norm") if relative else ("change", "norm")
    values = np.array(
        [[w[name] or 0.0 for w in step["trace"]["weights"]] for step in steps]
    ).T  # [layers, steps]
    made = figure(
        8.5,
        max(2.6, 1.5 + 0.17 * len(layers)),
        "The change of each layer",
        f"after each step; {unit}",
    )
    height = made.get_figheight()
    axes = made.add_axes((0.1, 0.5 / height, 0.76, 1 - 1.35 / height))
    image = axes.imshow(values, aspect="auto", cmap="YlGnBu", origin="lower", vmin=0)
    every = max(1, len(layers) // 15)
    named = [(n, "other" if layer is None else str(layer)) for n, layer in enumerate(layers)]
    axes.set_yticks([n for n, _ in named[::every]], [label for _, label in named[::every]])
    axes.set_xticks(range(len(steps)), [str(step["step"]) for step in steps])
    axes.xaxis.set_major_locator(MaxNLocator(min(len(steps), 16), integer=True))
    tidy(axes)
    axes.set_xticks(*_ticks([step["step"] for step in steps]))
    axes.set_xlabel("step", size=8.5, color=SOFT)
    axes.set_ylabel("layer", size=8.5, color=SOFT)
    bar = made.colorbar(image, cax=made.add_axes((0.885, 0.5 / height, 0.02, 1 - 1.35 / height)))
    bar.ax.tick_params(labelsize=8, colors=SOFT)
    bar.outline.set_visible(False)
    bar.ax.yaxis.set_major_formatter(lambda value, _: f"{value:.2%}" if relative else f"{value:g}")
    bar.ax.tick_params(labelcolor=INK)
    return made


def _ticks(steps: list[int]) -> tuple[list[int], list[str]]:
    every = max(1, -(-len(steps) // 16))
    places = list(range(0, len(steps), every))
    return places, [str(steps[place]) for place in places]


def _values(rows: list[dict[str, Any]], name: str) -> Any:
    return np.array([np.nan if row[name] is None else row[name] for row in rows], dtype=float)


def _varies(steps: list[dict[str, Any]], name: str) -> bool:
    return any(step[name] not in (None, 0, 0.0) for step in steps)
