"""The document as a heat map: entropy and attention, before and after, and what is marked in it."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure

from refine_server.server.cli.trace_plots.style import (
    GREEN,
    GREY,
    INK,
    ORANGE,
    SOFT,
    figure,
    tidy,
)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Strips:
    """Strips with one scale of colours."""

    strips: list[tuple[str, Any]]
    """The label of each, and its values [bins]; NaN where none is known."""
    colours: str
    norm: Normalize
    unit: str


def draw_document(response: dict[str, Any]) -> Figure:
    """Draw strips over the document's characters, from left to right."""
    before, after = response["trace"]["before"], response["trace"]["after"]
    groups = list(_groups(before, after))
    count = sum(len(group.strips) for group in groups)
    made = figure(11, 2.6 + 0.62 * count, "The document as the model sees it", _subtitle(before))
    grid = made.add_gridspec(
        count + 1,
        2,
        height_ratios=[*(1.0,) * count, 1.5],
        width_ratios=[60, 1],
        left=0.13,
        right=0.94,
        top=1 - 0.85 / made.get_figheight(),
        bottom=0.62 / made.get_figheight(),
        hspace=0.35,
        wspace=0.03,
    )
    edges = np.maximum.accumulate(np.array([*before["starts"], before["ends"][-1]], dtype=float))
    row = 0
    for group in groups:
        for label, values in group.strips:
            axes = made.add_subplot(grid[row, 0])
            mesh = axes.pcolormesh(
                edges, [0, 1], values[None], cmap=group.colours, norm=group.norm, rasterized=True
            )
            _finish(axes, label, edges)
            row += 1
        bar = made.colorbar(mesh, cax=made.add_subplot(grid[row - len(group.strips) : row, 1]))
        bar.ax.tick_params(labelsize=7, colors=SOFT)
        bar.set_label(group.unit, size=8, color=SOFT)
        bar.outline.set_visible(False)
        if not group.unit:
            low, high = group.norm.vmin or 0.0, group.norm.vmax or 0.0
            bar.set_ticks([low, 0.0, high], labels=[f"{low:.2g}", "0", f"{high:.2g}"])
    _draw_marks(made, grid[row, 0], response, edges)
    return made


def _groups(before: dict[str, Any], after: dict[str, Any] | None) -> Iterator[_Strips]:
    """Yield the strips of entropy and of attention: before, after, and the change."""
    for name, colours, unit in (("entropy", "magma_r", "nats"), ("attention", "viridis", "share")):
        if before[name] is None:
            continue
        first = np.array([np.nan if v is None else v for v in before[name]], dtype=float)
        strips = [(f"{name} before", first)]
        changed = None
        if after is not None:
            last = np.array([np.nan if v is None else v for v in after[name]], dtype=float)
            strips.append((f"{name} after", last))
            changed = last - first
        norm = _norm(np.concatenate([values for _, values in strips]), is_share=unit == "share")
        if unit == "share":  # zeros have no logarithm
            strips = [(label, np.maximum(values, norm.vmin or 0.0)) for label, values in strips]
        yield _Strips(strips=strips, colours=colours, norm=norm, unit=unit)
        if changed is not None:
            most = float(np.nanpercentile(np.abs(changed), 99)) or 1e-9
            yield _Strips(
                strips=[(f"{name}, change", changed)],
                colours="RdBu_r",
                norm=Normalize(-most, most),
                unit="",
            )


def _finish(axes: Axes, label: str, edges: Any) -> None:
    axes.set_facecolor("#eef1f4")
    axes.set_yticks([])
    axes.set_xticks([])
    axes.set_xlim(edges[0], edges[-1])
    axes.set_ylabel(label, rotation=0, ha="right", va="center", size=9, color=INK)
    for spine in axes.spines.values():
        spine.set_visible(False)


def _subtitle(before: dict[str, Any]) -> str:
    size = before["tokens_per_bin"]
    tokens = f"{before['tokens']:,} tokens" + (f", {size} in each column" if size > 1 else "")
    layers = before["attention_layers"]
    if layers:
        tokens += f"; attention of the question in layers {layers[0]} to {layers[-1]}"
    return tokens


def _norm(values: Any, *, is_share: bool) -> Normalize:
    values = values[~np.isnan(values)]
    if not is_share:
        return Normalize(0.0, float(np.percentile(values, 99.5)) if values.size else 1.0)
    highest = float(values.max()) or 1.0
    lowest = float(np.percentile(values[values > 0], 5)) if (values > 0).any() else highest / 100
    return LogNorm(min(lowest, highest / 10), highest)


def _draw_marks(made: Figure, cell: Any, response: dict[str, Any], edges: Any) -> None:
    """Draw evidence, what is read and what is held out, and where rollouts start in each step."""
    axes = made.add_subplot(cell)
    before = response["trace"]["before"]
    lanes = [
        ("evidence", before["evidence"], GREEN),
        ("steps read", before["spans"], ORANGE),
        ("held out", before["held_out"], GREY),
    ]
    lanes = [lane for lane in lanes if lane[1]]
    ticks: list[tuple[float, str]] = []
    for number, (label, spans, colour) in enumerate(lanes):
        width = (edges[-1] - edges[0]) / 600
        bars = [(s["start"], max(s["end"] - s["start"], width)) for s in spans]
        axes.broken_barh(bars, (-number - 0.4, 0.8), color=colour, linewidth=0)
        ticks.append((-number, label))
    places = [
        (position["start"], step["step"])
        for step in (response["adaptation_report"] or {"steps": []})["steps"]
        for position in (step["trace"] or {"positions": []})["positions"]
        if position["start"] is not None
    ]
    if places:
        floor = -len(lanes) - 0.3
        most = max(step for _, step in places)
        heights = [floor - 1.6 * (step - 1) / max(most - 1, 1) for _, step in places]
        axes.scatter([x for x, _ in places], heights, s=7, color=INK, linewidth=0, alpha=0.75)
        ticks.append((floor - (0.8 if most > 1 else 0.0), f"rollouts, step 1 to {most}"))
    axes.set_yticks([at for at, _ in ticks], [label for _, label in ticks])
    axes.set_xlim(edges[0], edges[-1])
    tidy(axes)
    axes.spines["left"].set_visible(False)
    axes.tick_params(axis="y", length=0, labelcolor=INK, labelsize=9)
    axes.set_xlabel("character of the document", size=8.5, color=SOFT)
