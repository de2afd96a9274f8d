"""The picture of a study: replicas, latency and hit ratio by the rate of requests."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure

matplotlib.use("agg")

NAMES = {True: "affinity", False: "any replica"}
PANELS = {
    "replicas": "replicas for the bound on p99",
    "hit_ratio": "share of requests whose document is kept",
    "p50": "median latency in seconds",
}


def draw(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Draw the rows of ``study.study`` into a PNG file."""
    figure = Figure(figsize=(12, 3.8), layout="constrained")
    panels = figure.subplots(1, len(PANELS))
    for axes, (name, title) in zip(panels, PANELS.items(), strict=True):
        for affinity, label in NAMES.items():
            shown = [row for row in rows if row["affinity"] is affinity and row["replicas"]]
            axes.plot(
                [row["rate"] for row in shown], [row[name] for row in shown], "o-", label=label
            )
        axes.set_xscale("log")
        axes.set_yscale("log" if name == "replicas" else "linear")
        axes.set_ylim(bottom=None if name == "replicas" else 0)
        axes.set_xlabel("requests per second")
        axes.set_title(title, fontsize=10)
        axes.grid(alpha=0.3)
    panels[0].legend(frameon=False)
    figure.savefig(path, dpi=120)
