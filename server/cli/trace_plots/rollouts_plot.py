"""A table of rollouts beside the document's own continuation, token by token."""

from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from refine_server.server.cli.trace_plots.style import BLUE, INK, LINE, MONO, ORANGE, SOFT, figure

MAX_ROWS = 12
"""Positions that are drawn of a step."""
COLUMNS = 30
"""Characters of a text in the table."""
ROW_INCHES, SIZE = 0.27, 8.5
CHARACTER_INCHES = 0.602 * SIZE / 72
"""Width of a character of the font."""


def draw_rollouts(response: dict[str, Any]) -> Figure:
    """Draw the rollouts of the first and of the last step, one of each position."""
    steps = [s for s in response["adaptation_report"]["steps"] if s["trace"]["positions"]]
    shown = [steps[0], steps[-1]] if len(steps) > 1 else steps
    rows = [min(len(step["trace"]["positions"]), MAX_ROWS) for step in shown]
    width, height = 11.0, 0.85 + sum(ROW_INCHES * (count + 2.4) for count in rows)
    made = figure(
        width,
        height,
        "What the model wrote, beside the document",
        "one rollout of each position; tokens that equal the document's are blue",
    )
    axes = made.add_axes((0, 0, 1, 1))
    axes.set_xlim(0, width)
    axes.set_ylim(height, 0)
    axes.axis("off")
    top = 0.85
    for step, count in zip(shown, rows, strict=True):
        top = _draw_step(axes, step, count, top)
    return made


def _draw_step(axes: Axes, step: dict[str, Any], count: int, top: float) -> float:
    places = (0.15, 1.75, 4.65, 7.55, 8.75, 9.85)
    reward = "-" if step["reward_mean"] is None else f"{step['reward_mean']:.2f}"
    said = f"step {step['step']}, mean reward {reward}"
    axes.text(0.15, top + ROW_INCHES / 2, said, size=10, weight="bold", color=INK, va="center")
    top += ROW_INCHES * 1.1
    heads = ("characters", "the document", "a rollout", "reward", "advantage", "entropy, nats")
    for place, head in zip(places, heads, strict=True):
        axes.text(place, top + ROW_INCHES / 2, head, size=8, color=SOFT, va="center")
    top += ROW_INCHES
    for position in step["trace"]["positions"][:count]:
        axes.plot([0.15, 10.85], [top, top], color=LINE, lw=0.6)
        middle = top + ROW_INCHES / 2
        rollout = position["rollouts"][0]
        where = "query" if position["start"] is None else f"{position['start']}-{position['end']}"
        _write(axes, places[0], middle, [(where, SOFT)])
        _write(axes, places[1], middle, [(piece, INK) for piece in position["own"]["pieces"]])
        pairs = zip(rollout["pieces"], rollout["matches"], strict=True)
        _write(
            axes, places[2], middle, [(piece, BLUE if same else ORANGE) for piece, same in pairs]
        )
        figures = rollout["reward"], rollout["advantage"], position["entropy"]
        for place, value in zip(places[3:], figures, strict=True):
            text = "-" if value is None else f"{value:.2f}"
            _write(axes, place, middle, [(text, INK)])
        top += ROW_INCHES
    return top + ROW_INCHES * 0.3


def _write(axes: Axes, left: float, middle: float, pieces: list[tuple[str, str]]) -> None:
    """Write pieces of text beside each other, cut off where their column ends."""
    room = COLUMNS
    for piece, colour in pieces:
        text = "".join(c if c.isprintable() else "\u00b7" for c in piece)[:room].replace("$", r"\$")
        axes.text(left, middle, text, size=SIZE, color=colour, family=MONO, va="center")
        left += CHARACTER_INCHES * len(text)
        room -= len(text)
