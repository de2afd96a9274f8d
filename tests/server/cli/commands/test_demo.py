import json
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import pytest

from refine_server.server.cli.commands import demo
from support.command_line import run, run_failing


def example(tmp_path: Path, answers: list[str]) -> str:
    (tmp_path / "log.md").write_text("a b c")
    questions = [{"query": "The  KEEPER is ines", "answers": answers}]
    path = tmp_path / "log.json"
    path.write_text(json.dumps({"document": "log.md", "questions": questions}))
    return str(path)


@pytest.mark.parametrize(("answers", "status"), [(["Keeper is"], 0), (["Bo", "Al"], 1)])
def test_it_succeeds_when_the_answer_is_right(
    live: Callable[..., str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    answers: list[str],
    status: int,
) -> None:
    monkeypatch.setattr(demo, "running_server", lambda _: nullcontext(live()))
    shown = run("demo", "--example", example(tmp_path, answers))
    assert shown.exit_code == status
    verdict = "right" if status == 0 else "wrong, expected Bo or Al"
    assert f"whole document: {verdict}" in shown.stdout
    assert f"evidence: {verdict}" in shown.stdout


def test_it_reports_why_its_server_did_not_start(tmp_path: Path) -> None:
    shown = run("demo", "--example", example(tmp_path, ["x"]), "--model", "no-such-model")
    assert shown.exit_code == 2
    assert "the server did not start" in shown.stderr
    assert "no-such-model" in shown.stderr


def test_it_names_a_bad_example(tmp_path: Path) -> None:
    (tmp_path / "bad.json").write_text("{}")
    run_failing(2, "no-such.json", "demo", "--example", "no-such.json")
    run_failing(2, "is not an example", "demo", "--example", str(tmp_path / "bad.json"))


@pytest.mark.parametrize(
    ("model", "title"),
    [
        ("smollm2", "Log of the survey ship Halcyon Wren"),
        ("tiny", "Notes"),
        ("tiny-nested", "Notes"),
    ],
)
def test_the_default_example_fits_the_model_and_is_found_from_any_directory(
    model: str, title: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert demo.Example.read(demo.default_example(model)).title == title
