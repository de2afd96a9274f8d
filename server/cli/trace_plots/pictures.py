"""All pictures of a traced run."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from refine_server.server.cli.exit import InputError
from refine_server.server.cli.trace_plots.document_plot import draw_document
from refine_server.server.cli.trace_plots.rollouts_plot import draw_rollouts
from refine_server.server.cli.trace_plots.steps_plot import draw_layers, draw_steps


def draw(response: dict[str, Any], out: Path, image: str) -> Iterator[Path]:
    """Draw the pictures of a run; yield the path of each.

    Without an adaptation there is only the document, and without rollouts no table of them.

    Args:
        response: of the run.
        out: the folder.
        image: type of the pictures' files.

    Raises:
        InputError: the folder cannot be written.
    """
    pictures: dict[str, Callable[[dict[str, Any]], Figure]] = {"document": draw_document}
    steps = (response["adaptation_report"] or {"steps": []})["steps"]
    if steps:
        pictures |= {"steps": draw_steps, "layers": draw_layers}
    if any(step["trace"]["positions"] for step in steps):
        pictures["rollouts"] = draw_rollouts
    for name, picture in pictures.items():
        path = out / f"{name}.{image}"
        try:
            out.mkdir(parents=True, exist_ok=True)
            picture(response).savefig(path)
        except OSError as error:
            raise InputError(f"cannot write {path}: {error.strerror}") from None
        yield path
