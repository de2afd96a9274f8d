"""``refine-server answer`` and ``adapt``, in this process and by a server."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Run = Callable[..., Any]


def test_answer_in_process(run: Run, in_process: Any, document: str) -> None:
    options = ("--steps", "3", "--max-tokens", "2", "--compare-base")
    shown = run("answer", "--document", document, "--query", "who", *options)
    assert shown.exit_code == 0
    assert shown.stdout == "base: base says no\nwh\n"
    assert "step 3/3" in shown.stderr
    assert "3 of 3 steps used" in shown.stderr


@pytest.mark.parametrize("query", ["who", "[b]ü[/b]"])
def test_json_is_the_same_in_process_and_from_a_server(
    run: Run, in_process: Any, live: Callable[..., str], document: str, query: str
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


def test_the_document_may_come_from_stdin(run: Run, in_process: Any) -> None:
    shown = run("answer", "--document", "-", "--query", "who", input="a b c d")
    assert (shown.exit_code, shown.stdout) == (0, "who\n")


def test_a_bad_document_is_named(fails: Run, in_process: Any, tmp_path: Path) -> None:
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    fails(2, "no-such: No such file", "answer", "--document", "no-such", "--query", "who")
    fails(2, "Is a directory", "answer", "--document", str(tmp_path), "--query", "who")
    fails(2, "not UTF-8", "answer", "--document", str(tmp_path / "binary"), "--query", "who")
    fails(2, "document: ", "answer", "--document", "-", "--query", "who", input=" ")
    fails(2, "--document", "answer", "--query", "who")


def test_a_bad_option_is_named(
    fails: Run, in_process: Any, live: Callable[..., str], document: str
) -> None:
    asked = ("answer", "--document", document, "--query", "who")
    fails(2, "query: ", "answer", "--document", document, "--query", "")
    fails(2, "adapt.steps: ", *asked, "--steps", "-1")
    fails(2, "adapt.objective: ", *asked, "--objective", "magic")
    fails(2, "REFINE_PROT", *asked, env={"REFINE_PROT": "1"})
    fails(1, "no server answers", *asked, "--url", "http://127.0.0.1:9")
    fails(1, "'other'", *asked, "--url", live(), "--model", "other")
    fails(2, "--url", "answer", "--adaptation", "adapt-1", "--query", "who")


def test_a_request_that_the_model_refuses_is_told(
    fails: Run, in_process: Any, tmp_path: Path
) -> None:
    path = tmp_path / "refuse.md"
    path.write_text("refuse")
    fails(2, "query is unfit", "answer", "--document", str(path), "--query", "who")


def test_a_model_that_cannot_be_loaded_is_named(fails: Run, document: str) -> None:
    asked = ("answer", "--document", document, "--query", "who")
    fails(2, "no-such-model", *asked, "--model", "no-such-model")
    fails(2, "device 'moon'", *asked, env={"REFINE_DEVICE": "moon"})


def test_a_document_is_adapted_to_once_and_asked_by_its_id(
    run: Run, fails: Run, live: Callable[..., str], document: str
) -> None:
    url = live(api_keys="alice:alice-alice-alice-1")
    server = ("--url", url)
    key = {"REFINE_API_KEY": "alice-alice-alice-1"}
    made = run("adapt", "--document", document, "--steps", "2", *server, env=key)
    assert made.exit_code == 0, made.output
    assert made.stderr.count("step ") == 2
    adaptation_id = made.stdout.strip()
    assert adaptation_id.startswith("adapt-")
    asked = run("answer", "--adaptation", adaptation_id, "--query", "who", *server, env=key)
    assert asked.exit_code == 0, asked.output
    word = Path(document).read_text().split()[0]
    assert asked.stdout.strip() == word
    again = run("adapt", "--document", document, "--steps", "2", *server, "--json", env=key)
    assert json.loads(again.stdout.splitlines()[-1])["id"] == adaptation_id
    fails(1, "key", "answer", "--adaptation", adaptation_id, "--query", "who", *server)
