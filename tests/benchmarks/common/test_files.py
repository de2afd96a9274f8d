"""A generator that fails leaves no file, and an older file as it was."""

import json
from functools import partial
from pathlib import Path

import pytest
from matplotlib.figure import Figure

from refine_server.benchmarks.common.files import whole_file, write_text
from refine_server.benchmarks.common.rows import DataError, write_rows
from refine_server.benchmarks.common.run_settings import begin_run
from refine_server.benchmarks.report.render import Plot, Report, Section
from refine_server.benchmarks.speed import costs
from support.command_line import run, run_failing

TINY = Path(__file__).parents[3] / "ttt" / "models" / "bundled" / "tiny"


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


def test_a_file_is_there_when_it_is_whole(tmp_path: Path) -> None:
    with whole_file(tmp_path / "made" / "one.txt") as partial_path:
        partial_path.write_text("half")
        assert not (tmp_path / "made" / "one.txt").exists()
    assert files(tmp_path) == ["one.txt"]


def test_a_failure_leaves_nothing_and_an_older_file_as_it_was(tmp_path: Path) -> None:
    write_text(tmp_path / "one.txt", "before")

    def fail(path: Path) -> None:
        with whole_file(path) as partial_path:
            partial_path.write_text("half")
            raise ValueError("in between")

    for name in ("one.txt", "two.txt"):
        with pytest.raises(ValueError, match="in between"):
            fail(tmp_path / name)
    assert files(tmp_path) == ["one.txt"]
    assert (tmp_path / "one.txt").read_text() == "before"


def test_a_row_that_fails_leaves_no_file_of_rows(tmp_path: Path) -> None:
    rows = (row for row in [{"a": 1}, {"a": {1}}])  # JSON has no sets
    with pytest.raises(TypeError):
        write_rows(tmp_path / "rows.jsonl", rows)
    assert files(tmp_path) == []


@pytest.mark.parametrize(
    ("tasks", "lengths"),
    [
        ("niah_single_1,qa_1", "512"),
        ("niah_single_1,nothing", "512"),
        ("vt,niah_single_1", "600,9"),
    ],
)
def test_ruler_make_leaves_no_file_of_half_the_samples(
    tmp_path: Path, tasks: str, lengths: str
) -> None:
    out = tmp_path / "ruler.jsonl"
    command = ["bench", "ruler-make", "--tasks", tasks, "--lengths", lengths, "--samples", 2]
    run_failing(2, "", *command, "--tokenizer", TINY, "--out", out)
    assert files(tmp_path) == []


def test_a_plot_that_fails_leaves_no_picture(tmp_path: Path) -> None:
    def draw(figure: Figure) -> None:
        figure.add_subplot()
        raise ValueError("no data")

    plot = Plot("scores", "Title", "Scores.", draw)
    report = Report("A run", {}, [Section("Scores", plots=[plot])], {})
    with pytest.raises(ValueError, match="no data"):
        report.write(tmp_path)
    with pytest.raises(KeyError):
        costs.draw({"unknown panel": {}}, tmp_path / "costs.png", "title")
    assert files(tmp_path) == []


def test_a_run_is_continued_under_its_own_settings_only(tmp_path: Path) -> None:
    begin = partial(begin_run, tmp_path)
    path = begin({"model": "tiny", "seed": 0}, resume=False)
    path.write_text("{}\n")
    assert begin({"model": "tiny", "seed": 0}, resume=True) == path
    with pytest.raises(DataError, match="continue it with --resume"):
        begin({"model": "tiny", "seed": 0}, resume=False)
    with pytest.raises(DataError, match="seed was 0, is 1"):
        begin({"model": "tiny", "seed": 1}, resume=True)
    (tmp_path / "settings.json").unlink()
    with pytest.raises(DataError, match=r"cannot read .*settings\.json"):
        begin({"model": "tiny", "seed": 0}, resume=True)


def test_a_folder_with_a_run_is_not_overwritten(tmp_path: Path) -> None:
    command = "bench adaptation --model tiny --lengths 256 --documents 1 --arms none --json --out"
    assert run(*command.split(), tmp_path).exit_code == 0
    lines = (tmp_path / "results.jsonl").read_text()
    run_failing(2, "continue it with --resume", *command.split(), tmp_path)
    run_failing(2, "seed was 0, is 4", *command.split(), tmp_path, "--resume", "--seed", 4)
    assert (tmp_path / "results.jsonl").read_text() == lines
    assert json.loads((tmp_path / "settings.json").read_text())["model"] == "tiny"
