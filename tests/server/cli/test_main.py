import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from refine_server.server.cli import answer as asking
from refine_server.server.cli import demo
from refine_server.server.cli.main import app
from refine_server.server.settings import Settings
from refine_server.ttt.interface.errors import RequestError

runner = CliRunner()


@pytest.fixture
def document(tmp_path: Path) -> str:
    path = tmp_path / "log.md"
    path.write_text("a b c")
    return str(path)


@pytest.fixture
def here(fake: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """In-process answers come from the scripted model."""
    monkeypatch.setattr("refine_server.server.engine.backend.open_backend", fake.open)
    monkeypatch.setattr(asking, "open_backend", fake.open)
    return fake


def run(*arguments: str, **options: Any) -> Any:
    return runner.invoke(app, list(arguments), **options)


def test_help_lists_the_commands_without_loading_torch() -> None:
    code = (
        "import sys; from refine_server.server.cli.main import app; sys.argv = ['x', '--help']\n"
        "try: app()\nexcept SystemExit: pass\n"
        "assert 'torch' not in sys.modules"
    )
    shown = subprocess.run(
        [sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True
    )
    for command in ("serve", "answer", "demo"):
        assert command in shown.stdout


def test_serve_help_has_every_option_and_its_variable() -> None:
    shown = run("serve", "--help")
    assert shown.exit_code == 0
    text = " ".join(shown.stdout.split())
    for name, field in Settings.model_fields.items():
        assert f"--{name.replace('_', '-')} " in text
        assert f"[env: REFINE_{name.upper()}]" in text
        assert field.description in text


def test_serve_refuses_bad_options_with_status_2() -> None:
    bad_value, unknown = run("serve", "--port", "x"), run("serve", "--prot", "1")
    assert (bad_value.exit_code, unknown.exit_code) == (2, 2)
    assert "--port (REFINE_PORT)" in bad_value.stderr
    assert "--prot" in unknown.stderr
    misspelt = run("serve", env={"REFINE_PROT": "1"})
    assert misspelt.exit_code == 2
    assert "REFINE_PROT" in misspelt.stderr


def test_answer_in_process(here: Any, document: str) -> None:
    options = ("--steps", "3", "--max-tokens", "2", "--compare-base")
    shown = run("answer", "--document", document, "--query", "who", *options)
    assert shown.exit_code == 0
    assert shown.stdout == "base: base says no\nwh\n"
    assert "step 3/3" in shown.stderr
    assert "3 of 3 steps used" in shown.stderr


@pytest.mark.parametrize("query", ["who", "[b]ü[/b]"])
def test_json_is_the_same_here_and_from_a_server(
    here: Any, live: Callable[..., str], document: str, query: str
) -> None:
    arguments = ("answer", "--document", document, "--query", query, "--json", "--seed", "3")
    local, remote = run(*arguments), run(*arguments, "--url", live())
    assert (local.exit_code, remote.exit_code) == (0, 0)
    mine, theirs = (json.loads(shown.stdout.splitlines()[-1]) for shown in (local, remote))
    assert mine["answer"] == theirs["answer"] == query
    assert mine.keys() == theirs.keys()
    assert mine["adaptation"].keys() == theirs["adaptation"].keys()
    assert mine["timings"].keys() == theirs["timings"].keys()
    assert mine["adaptation"]["steps"] == theirs["adaptation"]["steps"]


def test_the_document_may_come_from_stdin(here: Any) -> None:
    shown = run("answer", "--document", "-", "--query", "who", input="a b c d")
    assert (shown.exit_code, shown.stdout) == (0, "who\n")


def failing(status: int, message: str, *arguments: str, **options: Any) -> None:
    shown = run("answer", *arguments, **options)
    assert shown.exit_code == status
    assert message in shown.stderr
    assert "Traceback" not in shown.output
    assert isinstance(shown.exception, SystemExit)


def test_answer_tells_plainly_what_is_wrong(
    here: Any, live: Callable[..., str], document: str, tmp_path: Path
) -> None:
    asked = ("--document", document, "--query", "who")
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    failing(2, "no-such: No such file", "--document", "no-such", "--query", "who")
    failing(2, "Is a directory", "--document", str(tmp_path), "--query", "who")
    failing(2, "not UTF-8", "--document", str(tmp_path / "binary"), "--query", "who")
    failing(2, "document: ", "--document", "-", "--query", "who", input=" ")
    failing(2, "query: ", "--document", document, "--query", "")
    failing(2, "adapt.optimizer.steps: ", *asked, "--steps", "-1")
    failing(2, "adapt.objective: ", *asked, "--objective", "magic")
    failing(1, "no server answers", *asked, "--url", "http://127.0.0.1:9")
    failing(1, "no model 'other'", *asked, "--url", live(), "--model", "other")
    failing(2, "REFINE_PROT", *asked, env={"REFINE_PROT": "1"})


def test_a_request_that_the_loop_refuses_is_told_plainly(here: Any, tmp_path: Path) -> None:
    path = tmp_path / "refused.md"
    path.write_text(here.fail("refused", RequestError("query is unfit", "query", "unfit")))
    failing(2, "query is unfit", "--document", str(path), "--query", "who")


def test_a_model_that_is_not_there_is_told_plainly(document: str) -> None:
    asked = ("--document", document, "--query", "who")
    failing(2, "no-such-model", *asked, "--model", "no-such-model")
    failing(2, "device 'moon' cannot be used", *asked, env={"REFINE_DEVICE": "moon"})


def example(tmp_path: Path, answers: list[str]) -> str:
    (tmp_path / "log.md").write_text("a b c")
    questions = [{"query": "The  KEEPER is ines", "answers": answers}]
    path = tmp_path / "log.json"
    path.write_text(json.dumps({"document": "log.md", "questions": questions}))
    return str(path)


@pytest.mark.parametrize(("answers", "status"), [(["Keeper is"], 0), (["Bo", "Al"], 1)])
def test_demo_succeeds_when_the_answer_is_right(
    live: Callable[..., str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    answers: list[str],
    status: int,
) -> None:
    from contextlib import nullcontext

    monkeypatch.setattr(demo, "running_server", lambda *_: nullcontext(live()))
    shown = run("demo", "--example", example(tmp_path, answers))
    assert shown.exit_code == status
    assert "base: base says no" in shown.stdout
    assert ("right" in shown.stdout) == (status == 0)


def test_demo_tells_why_its_server_did_not_start(tmp_path: Path) -> None:
    shown = run("demo", "--example", example(tmp_path, ["x"]), "--model", "no-such-model")
    assert shown.exit_code == 2
    assert "the server did not start" in shown.stderr
    assert "no-such-model" in shown.stderr


def test_demo_names_a_bad_example(tmp_path: Path) -> None:
    missing = run("demo", "--example", "no-such.json")
    assert (missing.exit_code, "no-such.json" in missing.stderr) == (2, True)
    (tmp_path / "bad.json").write_text("{}")
    assert "is no example" in run("demo", "--example", str(tmp_path / "bad.json")).stderr


def test_main_sets_the_wait_policy(monkeypatch: pytest.MonkeyPatch) -> None:
    from refine_server.server.cli.main import main

    monkeypatch.setattr(sys, "argv", ["refine-server", "--help"])
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    with pytest.raises(SystemExit):
        main()
    assert os.environ["OMP_WAIT_POLICY"] == "passive"


def test_a_document_is_adapted_to_once_and_asked_by_its_id(
    live: Callable[..., str], document: str
) -> None:
    url = live(api_keys="alice:alice-alice-alice-1")
    there = ("--url", url)
    key = {"REFINE_API_KEY": "alice-alice-alice-1"}
    made = run("adapt", "--document", document, "--steps", "2", *there, env=key)
    assert made.exit_code == 0, made.output
    assert made.stderr.count("step ") == 2
    adaptation_id = made.stdout.strip()
    assert adaptation_id.startswith("adapt-")
    asked = run("answer", "--adaptation", adaptation_id, "--query", "who", *there, env=key)
    assert asked.exit_code == 0, asked.output
    word = Path(document).read_text().split()[0]
    assert asked.stdout.strip() == word
    again = run("adapt", "--document", document, "--steps", "2", *there, "--json", env=key)
    assert json.loads(again.stdout.splitlines()[-1])["id"] == adaptation_id
    failing(1, "key", "--adaptation", adaptation_id, "--query", "who", *there)
    failing(2, "--url", "--adaptation", adaptation_id, "--query", "who")
    failing(2, "document", "--query", "who")
