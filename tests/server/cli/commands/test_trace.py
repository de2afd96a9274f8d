"""A run that is traced, written to a file, and drawn."""

import builtins
import json
import struct
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from refine_server.server.cli.main import app

DOCUMENT = "The harbour code is amber. The bakery owner is Tobias Hartley. " * 6
SETTINGS = '{"guard": "none", "optimizer": {"steps": 2}}'


def run(*command: object) -> Any:
    return CliRunner().invoke(app, list(map(str, command)))


@pytest.fixture(scope="module")
def traced(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("traced")
    document, file = folder / "document.txt", folder / "run.json"
    document.write_text(DOCUMENT)
    asked = ("--query", "What is the harbour code?", "--model", "tiny", "--max-tokens", 4)
    done = run("answer", "--document", document, *asked, "--adapt", SETTINGS, "--trace", file)
    assert done.exit_code == 0, done.output
    return file


def size_of(png: Path) -> tuple[int, int]:
    width, height = struct.unpack(">II", png.read_bytes()[16:24])
    return width, height


def test_a_file_has_the_request_and_the_response(traced: Path) -> None:
    written = json.loads(traced.read_text())
    assert written["request"]["document"] == DOCUMENT
    assert written["response"]["trace"]["after"]["step"] == 2
    steps = written["response"]["adaptation_report"]["steps"]
    assert all(step["trace"]["positions"] for step in steps)


def test_four_pictures_are_drawn(traced: Path, tmp_path: Path) -> None:
    done = run("trace", "plot", traced, "--out", tmp_path / "new")
    assert done.exit_code == 0, done.output
    paths = [Path(line) for line in done.output.split()]
    assert [path.name for path in paths] == [
        *("document.png", "steps.png", "layers.png", "rollouts.png")
    ]
    assert all(size_of(path) > (1000, 300) for path in paths)


def test_pictures_may_be_vectors(traced: Path, tmp_path: Path) -> None:
    assert run("trace", "plot", traced, "--out", tmp_path, "--format", "svg").exit_code == 0
    svg = (tmp_path / "rollouts.svg").read_text()
    assert svg.startswith("<?xml")


def test_attention_and_bins_without_values_are_drawn(traced: Path, tmp_path: Path) -> None:
    """As an adaptation on evidence of a model with attention has them."""
    written = json.loads(traced.read_text())
    for stage in ("before", "after"):
        trace = written["response"]["trace"][stage]
        bins = len(trace["starts"])
        trace["attention"] = [0.0, *([1 / bins] * (bins - 1))]
        trace["attention_layers"] = [2, 3]
        trace["spans"] = trace["evidence"] = [{"start": 0, "end": 20}]
    written["response"]["trace"]["after"]["entropy"][5:] = [None] * (bins - 5)
    file = tmp_path / "run.json"
    file.write_text(json.dumps(written))
    plain = run("trace", "plot", traced, "--out", tmp_path / "plain")
    done = run("trace", "plot", file, "--out", tmp_path)
    assert (plain.exit_code, done.exit_code) == (0, 0), done.output
    taller = size_of(tmp_path / "document.png")[1]
    assert taller > size_of(tmp_path / "plain" / "document.png")[1]


def test_without_an_adaptation_there_is_the_document_alone(traced: Path, tmp_path: Path) -> None:
    written = json.loads(traced.read_text())
    written["response"]["adaptation_report"] = None
    written["response"]["trace"]["after"] = None
    file = tmp_path / "run.json"
    file.write_text(json.dumps(written))
    done = run("trace", "plot", file, "--out", tmp_path)
    assert [Path(line).name for line in done.output.split()] == ["document.png"]


@pytest.mark.parametrize("content", ["", "[]", '{"response": {}}', '{"response": {"trace": null}}'])
def test_a_file_without_a_trace_is_refused(tmp_path: Path, content: str) -> None:
    file = tmp_path / "run.json"
    file.write_text(content)
    done = run("trace", "plot", file)
    assert done.exit_code == 2
    assert "trace" in done.output


def test_without_matplotlib_the_message_says_what_to_install(
    traced: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = builtins.__import__

    def imported(name: str, *rest: Any) -> Any:
        if name.endswith("trace_plots.pictures"):
            raise ImportError("no module", name="matplotlib")
        return found(name, *rest)

    monkeypatch.setattr(builtins, "__import__", imported)
    done = run("trace", "plot", traced)
    assert done.exit_code == 2
    assert "refine-server[plot]" in done.output
