"""``bench longbench`` and ``bench ruler`` from their command to their report."""

import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from refine_server.benchmarks.quality.longbench.score import score_file
from refine_server.benchmarks.report.manifest import effective
from refine_server.clients import RefineClient
from refine_server.server.cli.main import app

TOKENIZER = str(Path(__file__).parents[3] / "ttt" / "models" / "bundled" / "tiny")
SECRET = "Alphonse the Unquotable"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    for task in ("hotpotqa", "lcc"):
        rows = [
            {
                "input": f"Question {i}?",
                "context": f"{SECRET} is {i}. " * 40,
                "answers": [f"right {i}"],
                "length": 3000 * i,
                "dataset": task,
                "language": "en",
                "all_classes": None,
                "_id": f"{task}-{i}",
            }
            for i in range(3)
        ]
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"{task}.jsonl").write_text(text)
    return folder


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace plotting, which takes most of the time in these tests."""
    monkeypatch.setattr("refine_server.benchmarks.report.render._picture", lambda *_: "")


def bench(scripted: Any, out: Path, *options: str) -> Result:
    command = [*options, "--url", scripted.url, "--out", str(out), "--json"]
    return CliRunner().invoke(app, ["bench", *command])


def longbench(scripted: Any, data: Path, out: Path, *options: str) -> Result:
    source = ["--data", str(data), "--tokenizer", TOKENIZER, "--max-length", "300"]
    return bench(scripted, out, "longbench", *source, *options)


def say(body: dict[str, Any]) -> str:
    """Answer correctly under refine, only the first question under ntp, and wrongly otherwise."""
    number = body["document"].split(" is ")[1].split(".")[0]
    objective = body["adapt"]["objective"]
    right = objective == "refine" or (objective == "ntp" and number == "0")
    return f"right {number}" if right else "wrong"


@pytest.mark.usefixtures("undrawn")
def test_longbench_is_asked_scored_and_reported(scripted: Any, data: Path, tmp_path: Path) -> None:
    scripted.say = say
    out = tmp_path / "out"
    completed = longbench(
        scripted, data, out, "--adapt", '{"optimizer": {"steps": 2}}', "--concurrency", "3"
    )
    assert completed.exit_code == 0, completed.output
    result = json.loads(completed.stdout.splitlines()[-1])
    assert (result["questions"], result["errors"]) == (6, 0)
    assert result["scores"]["refine"] == {"hotpotqa": 100, "lcc": 100}
    assert result["scores"]["ntp"]["hotpotqa"] == pytest.approx(33.33)
    assert result["scores"]["none"]["hotpotqa"] == 0
    assert len(scripted.bodies) == 18
    for objective in ("none", "ntp", "refine"):
        adapt = {"optimizer": {"steps": 2}, "objective": objective}
        # Three requests run at once, so their order is not fixed.
        asked = [body for body in scripted.bodies if body["adapt"] == adapt]
        assert sorted(body["max_tokens"] for body in asked) == [32, 32, 32, 64, 64, 64]
        queries = [body["query"] for body in asked if body["max_tokens"] == 32]
        start = "Answer the question based on the given passages."
        assert all(query.startswith(start) for query in queries)
    lines = [json.loads(x) for x in (out / "predictions.jsonl").read_text().splitlines()]
    scored = score_file(out / "predictions.jsonl")["objectives"]
    for objective, scores in scored.items():
        own = [round(x["score"], 2) for x in lines if x["objective"] == objective]
        assert scores["rows"] == own


@pytest.mark.usefixtures("undrawn")
def test_longbench_needs_no_length_because_the_server_cuts_what_is_too_long(
    scripted: Any, data: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    scripted.overflow = {
        "handled": "truncate_middle",
        "sent_tokens": 900,
        "read_tokens": 300,
        "left_out": [{"start": 30, "end": 90}],
    }
    options = ["--data", str(data), "--objectives", "none", "--tasks", "hotpotqa"]
    completed = bench(scripted, out, "longbench", *options)
    assert completed.exit_code == 0, completed.output
    assert {body["on_overflow"] for body in scripted.bodies} == {"truncate_middle"}
    assert all(f"{SECRET} is" in body["document"] for body in scripted.bodies)
    assert min(body["document"].count(SECRET) for body in scripted.bodies) == 40
    lines = [json.loads(x) for x in (out / "predictions.jsonl").read_text().splitlines()]
    assert [line["truncated"] for line in lines] == [True] * 3


def test_a_report_has_pairs_intervals_and_cost_and_no_text_of_the_data(
    scripted: Any, data: Path, tmp_path: Path
) -> None:
    scripted.say = say
    out = tmp_path / "out"
    longbench(scripted, data, out)
    report = json.loads((out / "report" / "report.json").read_text())
    hotpotqa = report["scores"]["ntp"]["hotpotqa"]
    assert (hotpotqa["n"], hotpotqa["low"], hotpotqa["high"]) == (3, 0, 100)
    pair = next(
        p for p in report["paired"]
        if (p["objective"], p["against"], p["task"]) == ("refine", "ntp", "hotpotqa")
    )  # fmt: skip
    assert (pair["wins"], pair["ties"], pair["losses"]) == (2, 1, 0)
    assert pair["difference"]["mean"] == pytest.approx(66.67, abs=0.01)
    assert report["buckets"]["refine"].keys() == {"0-4k", "4-8k"}
    assert report["pareto"]["refine"]["front"]
    assert report["latency"]["refine"]["prefill"]["p50"] == 0.2
    assert report["adaptations"]["refine"]["curves"]["reward_mean"] == [0.25, 0.25]
    assert report["manifest"]["model"] == {
        "id": "scripted",
        "family": "f",
        "parameters": 7,
        "fingerprint": "beef",
        "prompt_form": "plain",
        "max_model_len": 9,
        "context_length": None,
    }
    assert report["manifest"]["server"] == "9.9"
    assert len(report["rows"]) == 18
    for name in ("report.json", "report.md", "report.html"):
        text = (out / "report" / name).read_text()
        assert SECRET not in text
        assert "right 0" not in text
    page = Page((out / "report" / "report.html").read_text())
    assert page.titles[:2] == ["Scores", "Scores by length"]
    assert len(page.images) == 4
    assert all(image.startswith("data:image/png;base64,") for image in page.images)
    assert {path.stem for path in (out / "report").glob("*.png")} == {
        "scores",
        "pareto",
        "latency",
        "curves",
    }


class Page(HTMLParser):
    """The sections and pictures of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.titles: list[str] = []
        self.images: list[str] = []
        self.tag = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tag = tag
        if tag == "img":
            self.images.append(dict(attrs)["src"] or "")
        assert not any(str(value).startswith("http") for _, value in attrs), "self-contained"

    def handle_data(self, data: str) -> None:
        if self.tag == "h2" and data.strip():
            self.titles.append(data)


@pytest.mark.usefixtures("undrawn")
def test_an_interrupted_run_goes_on_where_it_was(scripted: Any, data: Path, tmp_path: Path) -> None:
    scripted.say = say
    out = tmp_path / "out"
    whole = longbench(scripted, data, out)
    lines = (out / "predictions.jsonl").read_text().splitlines(keepends=True)
    (out / "predictions.jsonl").write_text("".join(lines[:11]))
    scripted.bodies.clear()
    refused = longbench(scripted, data, out)
    assert refused.exit_code == 2
    assert "continue it with --resume" in refused.stderr
    cut = CliRunner().invoke(app, ["bench", "report", str(out), "--json"])
    assert json.loads(cut.stdout.splitlines()[-1])["questions"] == 3
    resumed = longbench(scripted, data, out, "--resume")
    assert len(scripted.bodies) == 7
    assert resumed.stdout.splitlines()[-1] == whole.stdout.splitlines()[-1]


@pytest.mark.usefixtures("undrawn")
def test_a_run_resumes_under_its_own_settings_only(
    scripted: Any, data: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    longbench(scripted, data, out, "--limit", "1")
    adapt = '{"optimizer": {"steps": 3}}'
    other = longbench(scripted, data, out, "--limit", "1", "--resume", "--adapt", adapt)
    assert other.exit_code == 2
    was = "{'optimizer': {'steps': 8, 'max_seconds': None}}"
    assert f"its settings: adapt was {was}, is {{'optimizer': {{'steps': 3" in other.stderr


@pytest.mark.usefixtures("undrawn")
def test_a_refused_question_is_kept_and_asked_again_when_resumed(
    scripted: Any, data: Path, tmp_path: Path
) -> None:
    def refuse(body: dict[str, Any]) -> str:
        if body["adapt"]["objective"] == "ntp":
            raise ValueError("document is too long")
        return say(body)

    scripted.say = refuse
    out = tmp_path / "out"
    completed = longbench(scripted, data, out, "--tasks", "lcc")
    result = json.loads(completed.stdout.splitlines()[-1])
    assert (result["questions"], result["errors"]) == (0, 3)
    assert completed.exit_code == 1
    reason = "3 of 9 requests failed; the first: lcc lcc-0 ntp: document is too long"
    assert reason in completed.stderr
    errors = [json.loads(line) for line in (out / "errors.jsonl").read_text().splitlines()]
    assert {e["error"] for e in errors} == {"document is too long"}
    scripted.say = say
    completed = longbench(scripted, data, out, "--tasks", "lcc", "--resume")
    assert completed.exit_code == 0
    assert json.loads(completed.stdout.splitlines()[-1])["questions"] == 3


@pytest.mark.usefixtures("undrawn")
def test_a_row_that_cannot_be_encoded_is_named_and_the_others_are_asked(
    scripted: Any, data: Path, tmp_path: Path
) -> None:
    scripted.say = say
    rows = [json.loads(line) for line in (data / "hotpotqa.jsonl").read_text().splitlines()]
    rows[0]["context"] += "\ud800"
    rows[1]["input"] = "\udc00?"
    rows[2].update(_id="hotpotqa-\ud800", answers=["right 2", "\udfff"])
    (data / "hotpotqa.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    out = tmp_path / "out"
    result = longbench(scripted, data, out, "--tasks", "hotpotqa", "--concurrency", "2")
    assert result.exit_code == 1, result.output
    assert "6 of 9 requests failed; the first: hotpotqa hotpotqa-" in result.stderr
    figures = json.loads(result.stdout.splitlines()[-1])
    assert (figures["questions"], figures["errors"]) == (1, 6)
    assert len(scripted.bodies) == 3
    errors = [json.loads(line) for line in (out / "errors.jsonl").read_text().splitlines()]
    assert {(e["id"], e["type"], e["error"].split(":")[0]) for e in errors} == {
        ("hotpotqa-0", "InvalidArgumentError", "document"),
        ("hotpotqa-1", "InvalidArgumentError", "query"),
    }
    answered = [json.loads(line) for line in (out / "predictions.jsonl").read_text().splitlines()]
    assert {line["id"] for line in answered} == {"hotpotqa-\ud800"}
    resumed = longbench(scripted, data, out, "--tasks", "hotpotqa", "--resume")
    assert json.loads(resumed.stdout.splitlines()[-1]) == figures
    assert len(scripted.bodies) == 3


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    completed = CliRunner().invoke(app, ["bench", "report", str(tmp_path)])
    assert completed.exit_code == 2
    assert "run.json: No such file" in completed.stderr


def test_a_server_that_is_gone_ends_the_run(scripted: Any, data: Path, tmp_path: Path) -> None:
    scripted.url = "http://127.0.0.1:9"
    completed = longbench(scripted, data, tmp_path / "out")
    assert completed.exit_code == 1
    assert "no server answers at http://127.0.0.1:9" in completed.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--objectives", "sft"], "none, ntp, refine"),
        (["--objectives", "ntp,ntp"], "each once"),
        (["--adapt", "{"], "not valid JSON"),
        (["--adapt", '{"objective": "ntp"}'], "without `objective`"),
        (["--adapt", '{"loss": {"kl": NaN}}'], "--adapt.loss.kl: nan is not finite"),
        (["--tasks", "hotpot"], "not a LongBench task"),
        (["--tokenizer", "nowhere/at-all"], "cannot read nowhere/at-all"),
        (["--max-length", "64"], "tokens beside the context"),
    ],
)
def test_bad_options_are_named(
    scripted: Any, data: Path, tmp_path: Path, options: list[str], message: str
) -> None:
    completed = longbench(scripted, data, tmp_path / "out", *options)
    assert completed.exit_code == 2
    assert message in " ".join(completed.stderr.replace("│", "").split())
    assert not scripted.bodies
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("undrawn")
def test_ruler_is_asked_scored_and_reported(scripted: Any, tmp_path: Path) -> None:
    rows = [
        {"index": i, "task": "qa_1", "context": f"{SECRET} is {i}.", "query": "Who?",
         "outputs": [f"right {i}", "or this"]}
        for i in range(3)
    ]  # fmt: skip
    (tmp_path / "qa.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    scripted.say = say
    out = tmp_path / "out"
    command = ["ruler", "--data", str(tmp_path / "qa.jsonl"), "--objectives", "none,ntp,refine"]
    completed = bench(scripted, out, *command, "--limit", "2")
    assert completed.exit_code == 0, completed.output
    result = json.loads(completed.stdout.splitlines()[-1])
    assert result["scores"] == {"none": {"qa_1": 0}, "ntp": {"qa_1": 50}, "refine": {"qa_1": 100}}
    assert scripted.bodies[0]["document"].startswith("Answer the question based on the given docu")
    assert scripted.bodies[0]["query"].endswith("Question: Who? Answer:")
    assert "buckets" not in (out / "report" / "report.md").read_text()


def test_a_manifest_has_the_settings_of_a_preset(scripted) -> None:
    with RefineClient(scripted.url) as client:
        chosen = effective({"preset": "paper", "optimizer": {"steps": 3}}, client)
    assert (chosen["optimizer"]["steps"], chosen["optimizer"]["learning_rate"]) == (3, 1e-6)
    assert chosen["on"] == {"kind": "prompt"}
    assert not {"preset", "objective"} & chosen.keys()
