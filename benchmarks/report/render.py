"""Writes a report as JSON, Markdown and one self-contained HTML page, and its plots."""

import base64
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
from jinja2 import Environment, PackageLoader
from matplotlib.figure import Figure

from refine_server.benchmarks.common.files import whole_file, write_text
from refine_server.benchmarks.report.manifest import Manifest

matplotlib.use("agg")


@dataclass(frozen=True)
class Plot:
    """A plot and its description as alternative text. ``draw`` fills an empty figure."""

    name: str
    title: str
    caption: str
    draw: Callable[[Figure], None]


@dataclass(frozen=True)
class Section:
    """A part of a report: text, a table and plots; each is optional."""

    title: str
    text: str = ""
    header: Sequence[str] = ()
    rows: Sequence[Sequence[str]] = ()
    plots: Sequence[Plot] = ()


@dataclass(frozen=True)
class Report:
    """A run's results. ``data`` is everything for programs; ``facts`` describe the run."""

    title: str
    facts: dict[str, str]
    sections: Sequence[Section]
    data: dict[str, Any]

    def write(self, folder: Path) -> list[Path]:
        """Write ``report.json``, ``.md`` and ``.html`` and the plots; return their paths."""
        folder.mkdir(parents=True, exist_ok=True)
        pictures = {
            plot.name: _picture(plot, folder / f"{plot.name}.png")
            for section in self.sections
            for plot in section.plots
        }
        written = [folder / f"{name}.png" for name in pictures]
        for name in ("report.md", "report.html"):
            # Markdown and HTML need different escapes in cells; only HTML's are automatic.
            templates = Environment(
                loader=PackageLoader("refine_server.benchmarks.report"),
                autoescape=name.endswith(".html"),
                trim_blocks=True,
                lstrip_blocks=True,
                keep_trailing_newline=True,
            )
            templates.filters["cell"] = lambda text: text.replace("|", "\\|")
            text = templates.get_template(f"{name}.j2").render(report=self, pictures=pictures)
            write_text(folder / name, text)
            written.append(folder / name)
        text = json.dumps(self.data, indent=1, ensure_ascii=False)
        write_text(folder / "report.json", text + "\n")
        return [*written, folder / "report.json"]


def facts_of(manifest: Manifest) -> dict[str, str]:
    """Describe a run as the head of a report."""
    model = {name: value for name, value in manifest.model.items() if name != "id"}
    return {
        "model": f"{manifest.model['id']} ({_listed(model)})",
        "server": f"refine-server {manifest.server}",
        "settings": _listed(manifest.settings),
        "command": manifest.command,
        "started": manifest.started,
        "client": _listed(manifest.client),
    }


def _listed(fields: Mapping[str, Any]) -> str:
    def text_of(value: Any) -> str:
        if isinstance(value, list):
            return "+".join(map(str, value))
        return json.dumps(value) if isinstance(value, dict) else str(value)

    return ", ".join(f"{name} {text_of(v)}" for name, v in fields.items() if v is not None)


def _picture(plot: Plot, path: Path) -> str:
    """Draw a plot into a file; return the image as text to embed in a page."""
    figure = Figure(figsize=(8.0, 4.2), dpi=160, layout="constrained")
    plot.draw(figure)
    figure.suptitle(plot.title)
    with whole_file(path) as partial:
        figure.savefig(partial, metadata={"Software": None})
    return base64.b64encode(path.read_bytes()).decode()
