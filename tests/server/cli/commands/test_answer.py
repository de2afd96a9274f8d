"""``refine-server answer`` and ``adapt``, in this process and over HTTP."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from refine_server.ttt.interface.errors import RequestError
from refine_server.ttt.interface.evidence import EvidenceSpans
from refine_server.ttt.interface.requests import AnswerRequest, Work
from refine_server.ttt.programs.encode import EncodedWork
from support.command_line import run, run_failing
from support.fake_backend import FakeBackend

STEPS = '{"optimizer": {"steps": 2}}'
STEPS_3 = '{"optimizer": {"steps": 3}}'


def test_answer_in_process(in_process: FakeBackend, document: str) -> None:
    options = ("--adapt", '{"optimizer": {"steps": 3}}', "--max-tokens", "2", "--compare-base")
    shown = run("answer", "--document", document, "--query", "who", *options)
    assert shown.exit_code == 0
    assert shown.stdout == "base: base says no\nwh\n"
    assert "step 3/3" in shown.stderr
    assert "3 of 3 steps used" in shown.stderr


@pytest.mark.parametrize("query", ["who", "[b]ü[/b]"])
def test_json_is_the_same_in_process_and_from_a_server(
    in_process: FakeBackend, live: Callable[..., str], document: str, query: str
) -> None:
    arguments = ("answer", "--document", document, "--query", query, "--json", "--seed", "3")
    local, remote = run(*arguments), run(*arguments, "--url", live())
    assert (local.exit_code, remote.exit_code) == (0, 0)
    mine, theirs = (json.loads(shown.stdout.splitlines()[-1]) for shown in (local, remote))
    assert mine["answer"] == theirs["answer"] == query
    assert mine.keys() == theirs.keys()
    assert mine["adaptation_report"].keys() == theirs["adaptation_report"].keys()
    assert mine["timings"].keys() == theirs["timings"].keys()
    assert mine["adaptation_report"]["steps"] == theirs["adaptation_report"]["steps"]


EVIDENCE = [
    (("--evidence-count", "1"), {"by": "bm25", "count": 1}),
    (("--evidence-words", "rye", "--evidence-tokens", "16"), {"words": "rye", "tokens": 16}),
    (("--evidence-span", "0:1", "--evidence-span", "3:5"), {"by": "spans"}),
]


@pytest.mark.parametrize(("options", "evidence"), EVIDENCE)
def test_evidence_is_said_by_options(
    in_process: FakeBackend,
    document: str,
    options: tuple[str, ...],
    evidence: dict[str, object],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[Work] = []
    encode = in_process.encode

    def record(work: Work) -> EncodedWork:
        asked.append(work)
        return encode(work)

    monkeypatch.setattr(in_process, "encode", record)
    shown = run("answer", "--document", document, "--query", "who", *options)
    assert shown.exit_code == 0, shown.output
    [work] = asked
    assert isinstance(work, AnswerRequest)
    assert work.evidence is not None
    assert work.evidence.model_dump().items() >= evidence.items()
    if isinstance(work.evidence, EvidenceSpans):
        assert [(span.start, span.end) for span in work.evidence.spans] == [(0, 1), (3, 5)]


def test_bad_evidence_is_named(in_process: FakeBackend, document: str) -> None:
    asked = ("answer", "--document", document, "--query", "who")
    run_failing(2, "evidence.by: ", *asked, "--evidence", "magic")
    run_failing(2, "evidence.count: ", *asked, "--evidence-count", "0")
    run_failing(2, "'5' is not of the form START:END", *asked, "--evidence-span", "5")
    run_failing(2, "cannot be combined", *asked, "--evidence-span", "0:5", "--evidence", "bm25")


def test_the_document_may_come_from_stdin(in_process: FakeBackend) -> None:
    shown = run("answer", "--document", "-", "--query", "who", input="a b c d")
    assert (shown.exit_code, shown.stdout) == (0, "who\n")


def test_a_bad_document_is_named(in_process: FakeBackend, tmp_path: Path) -> None:
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    run_failing(2, "no-such: No such file", "answer", "--document", "no-such", "--query", "who")
    run_failing(2, "Is a directory", "answer", "--document", str(tmp_path), "--query", "who")
    run_failing(2, "not UTF-8", "answer", "--document", str(tmp_path / "binary"), "--query", "who")
    run_failing(2, "document: ", "answer", "--document", "-", "--query", "who", input=" ")
    run_failing(2, "--document", "answer", "--query", "who")


def test_a_bad_option_is_named(
    in_process: FakeBackend, live: Callable[..., str], document: str
) -> None:
    asked = ("answer", "--document", document, "--query", "who")
    run_failing(2, "query: ", "answer", "--document", document, "--query", "")
    run_failing(2, "adapt.optimizer.steps: ", *asked, "--adapt", '{"optimizer": {"steps": -1}}')
    run_failing(2, "adapt.objective: ", *asked, "--adapt", '{"objective": "magic"}')
    run_failing(2, "--adapt must be a preset (fast, ", *asked, "--adapt", "magic")
    run_failing(2, "--adapt must be a preset (fast, ", *asked, "--adapt", "[]")
    run_failing(2, "REFINE_PROT", *asked, env={"REFINE_PROT": "1"})
    run_failing(1, "no server answers", *asked, "--url", "http://127.0.0.1:9")
    run_failing(1, "'other'", *asked, "--url", live(), "--model", "other")
    run_failing(2, "--url", "answer", "--adaptation", "adapt-1", "--query", "who")


def test_a_request_that_the_model_refuses_is_an_error(
    in_process: FakeBackend, tmp_path: Path
) -> None:
    path = tmp_path / "refused.md"
    path.write_text(in_process.fail("refused", RequestError("query is unfit", "query", "unfit")))
    run_failing(2, "query is unfit", "answer", "--document", path, "--query", "who")


def test_a_model_that_cannot_be_loaded_is_named(document: str) -> None:
    asked = ("answer", "--document", document, "--query", "who")
    run_failing(2, "no-such-model", *asked, "--model", "no-such-model")
    run_failing(2, "device 'moon'", *asked, env={"REFINE_DEVICE": "moon"})


def test_a_document_is_adapted_to_once_and_asked_by_its_id(
    live: Callable[..., str], document: str
) -> None:
    url = live(api_keys="alice:alice-alice-alice-1")
    server = ("--url", url)
    key = {"REFINE_API_KEY": "alice-alice-alice-1"}
    made = run("adapt", "--document", document, "--adapt", STEPS, *server, env=key)
    assert made.exit_code == 0, made.output
    assert made.stderr.count("step ") == 2
    adaptation_id = made.stdout.strip()
    assert adaptation_id.startswith("adapt-")
    asked = run("answer", "--adaptation", adaptation_id, "--query", "who", *server, env=key)
    assert asked.exit_code == 0, asked.output
    word = Path(document).read_text().split()[0]
    assert asked.stdout.strip() == word
    again = run("adapt", "--document", document, "--adapt", STEPS, *server, "--json", env=key)
    assert json.loads(again.stdout.splitlines()[-1])["id"] == adaptation_id
    run_failing(1, "key", "answer", "--adaptation", adaptation_id, "--query", "who", *server)


def test_an_adaptation_on_evidence_is_aimed_by_options(
    live: Callable[..., str], document: str
) -> None:
    server = ("--url", live())
    aimed = ("--adapt", "fast", "--query", "a", "--query", "c")
    one = ("--evidence-count", "1")
    made = run("adapt", "--document", document, *aimed, *one, *server, "--json")
    assert made.exit_code == 0, made.output
    adaptation = json.loads(made.stdout.splitlines()[-1])
    assert adaptation["adapt"]["on"] == {"kind": "evidence"}
    assert [citation["text"] for citation in adaptation["citations"]] == ["a b c"]
    asked = ("answer", "--adaptation", adaptation["id"], "--query", "who", *server)
    answered = run(*asked, "--context", "document+passages", *one, "--compare-base")
    assert answered.exit_code == 0, answered.output
    assert answered.stdout == "base: base says no\nwho\n"
    run_failing(1, "queries: ", "adapt", "--document", document, "--adapt", "fast", *server)


@pytest.mark.parametrize(
    "options",
    [("--adapt", "fast"), ("--document", "log.md")],
)
def test_options_of_the_adaptation_are_refused_once_there_is_one(options: tuple[str, ...]) -> None:
    asked = ("answer", "--adaptation", "adapt-1", "--query", "who", "--url", "http://127.0.0.1:9")
    run_failing(2, f"{options[0]} cannot be combined with --adaptation", *asked, *options)


def test_on_overflow_is_said_by_an_option(
    in_process: FakeBackend, live: Callable[..., str], document: str
) -> None:
    asked = ("answer", "--document", document, "--query", "who")
    assert run(*asked, "--on-overflow", "error").exit_code == 0
    run_failing(2, "on_overflow: ", *asked, "--on-overflow", "magic")
    kept = ("adapt", "--document", document, "--url", live(), "--json")
    assert run(*kept, "--on-overflow", "error").exit_code == 0
    # Passages are chosen by a query, which there is none of.
    run_failing(2, "on_overflow: ", *kept, "--on-overflow", "passages")
    with_url = ("--url", "http://127.0.0.1:9", "--adaptation", "adapt-0", "--query", "who")
    run_failing(
        2, "--on-overflow cannot be combined", "answer", *with_url, "--on-overflow", "error"
    )


def test_progress_says_what_it_costs_and_how_long_it_will_take(
    in_process: FakeBackend, live: Callable[..., str], document: str
) -> None:
    asked = ("answer", "--document", document, "--query", "who", "--adapt", STEPS_3)
    for shown in (run(*asked), run(*asked, "--url", live())):
        assert shown.exit_code == 0, shown.output
        assert re.search(r"about [\d.]+ s: reading .* s, adapting .* s, answering", shown.stderr)
        lefts = re.findall(r"step \d/3 .* about (\d+) s left", shown.stderr)
        assert len(lefts) == 3


def test_an_estimate_is_printed_instead_of_an_answer(
    in_process: FakeBackend, live: Callable[..., str], document: str
) -> None:
    asked = ("answer", "--document", document, "--query", "who", "--adapt", STEPS_3)
    url = live()
    made = ("adapt", "--document", document, "--adapt", STEPS_3, "--url", url)
    for command in (asked, (*asked, "--url", url), made):
        shown = run(*command, "--estimate")
        assert shown.exit_code == 0, shown.output
        cost, tokens = shown.stdout.splitlines()
        assert cost.startswith("about ")
        assert tokens.startswith("5 document tokens")
        told = json.loads(run(*command, "--estimate", "--json").stdout)
        assert told["object"] == "estimate"
        assert told["estimate"]["adapt_seconds"] > 0
    assert in_process.turns == []
