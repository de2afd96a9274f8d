"""Colours and fonts of the pictures."""

from matplotlib.axes import Axes
from matplotlib.figure import Figure

INK, SOFT, LINE = "#1f2933", "#7b8794", "#d9dee4"
BLUE, ORANGE, GREEN, GREY = "#2563a8", "#c8551b", "#2f8f5b", "#9aa5b1"
MONO = "DejaVu Sans Mono"
DPI = 150


def figure(width: float, height: float, title: str, subtitle: str = "") -> Figure:
    """Return a white figure with a title, its size in inches."""
    made = Figure(figsize=(width, height), dpi=DPI, facecolor="white")
    made.text(0.012, 1 - 0.16 / height, title, size=13, weight="bold", color=INK, va="top")
    made.text(0.012, 1 - 0.42 / height, subtitle, size=9, color=SOFT, va="top")
    return made


def tidy(axes: Axes, title: str = "") -> None:
    """Leave of the frame what a reader needs."""
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(LINE)
    axes.tick_params(colors=SOFT, labelsize=8, length=3)
    axes.set_title(title, loc="left", size=9.5, color=INK)
