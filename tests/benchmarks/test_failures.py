"""A run in which requests failed ends with status 1 and shows the first reason, in every bench."""

import json
from pathlib import Path
from typing import Any

import pytest

from refine_server.benchmarks.common.failures import RunFailedError, require_answers, require_zero
from refine_server.benchmarks.quality.answers.bench import AnswerBench
from refine_server.benchmarks.quality.regimes.bench import AdaptationBench
from refine_server.benchmarks.robustness.fuzz import bench as fuzz_bench
from refine_server.benchmarks.robustness.reliability import bench as reliability_bench
from refine_server.benchmarks.robustness.reliability import faults
from refine_server.benchmarks.robustness.reliability.process import ServerProcess
from refine_server.benchmarks.serving import idle_servers
from refine_server.benchmarks.serving.overhead import compare
from refine_server.ttt.interface.errors import RequestError
from support.command_line import run, run_failing

TINY = Path(__file__).parents[2] / "ttt" / "models" / "bundled" / "tiny"
TOO_LONG = RequestError("document: it is too long", "document", "too_long")


def test_the_message_counts_and_has_the_first_reason() -> None:
    require_answers(0, 9, None)
    with pytest.raises(RunFailedError, match=r"^2 of 9 requests failed; the first: qa 1: no$"):
        require_answers(2, 9, "qa 1: no")
    require_zero({"wrong": 0, "lost": 0}, ("wrong", "lost"), None)
    with pytest.raises(RunFailedError, match=r"^lost 3; the first: lost: x$"):
        require_zero({"wrong": 0, "lost": 3}, ("wrong", "lost"), "lost: x")


def test_load(scripted: Any, tmp_path: Path) -> None:
    def say(body: dict[str, Any]) -> str:
        if len(scripted.bodies) > 2:
            raise ValueError("the queue is full")
        return "fine"

    scripted.say = say
    command = ["load", "--url", scripted.url, "--tokenizer", TINY, "--lengths", "600"]
    command += ["--clients", "1", "--requests", "4", "--out", tmp_path]
    run_failing(1, "2 of 4 requests failed; the first: scripted: the queue", "bench", *command)
    report = (tmp_path / "report.md").read_text()
    assert "| 1 | scripted | 2 | the queue is full |" in report
    rows = [json.loads(line) for line in (tmp_path / "requests.jsonl").read_text().splitlines()]
    assert [row["answer"] for row in rows] == ["fine", "fine", None, None]
    assert rows[2]["reason"] == "the queue is full"


@pytest.mark.parametrize("bench", ["longbench", "ruler"])
def test_replays(scripted: Any, tmp_path: Path, bench: str) -> None:
    def refuse(body: dict[str, Any]) -> str:
        if body["adapt"]["objective"] == "ntp":
            raise ValueError("no memory")
        return "fine"

    scripted.say = refuse
    row: dict[str, Any] = {"task": "qa_1", "context": "It is so.", "query": "What?"}
    row |= {"index": 7, "outputs": ["so"]}
    if bench == "longbench":
        row = {"dataset": "lcc", "context": "It is so.", "input": "What?", "_id": "7"}
        row |= {"answers": ["so"], "all_classes": None, "length": 3, "language": "en"}
    file = tmp_path / "lcc.jsonl"
    file.write_text(json.dumps(row) + "\n")
    data = tmp_path if bench == "longbench" else file
    command = [bench, "--url", scripted.url, "--data", data, "--out", tmp_path / "run"]
    command += ["--objectives", "none,ntp"]
    task = "lcc" if bench == "longbench" else "qa_1"
    reason = f"1 of 2 requests failed; the first: {task} 7 ntp: no memory"
    run_failing(1, reason, "bench", *command)
    run_failing(1, reason, "bench", "report", tmp_path / "run")
    assert f"the first: {task} 7 ntp: no memory" in (
        (tmp_path / "run" / "report" / "report.md").read_text()
    )


def test_a_run_without_questions_measures_nothing(scripted: Any, tmp_path: Path) -> None:
    (tmp_path / "none.jsonl").write_text("")
    command = ["ruler", "--url", scripted.url, "--data", tmp_path / "none.jsonl"]
    run_failing(2, "--data: there is no question", "bench", *command, "--out", tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_adaptation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measure = AnswerBench.measure

    def refuse_one(self: AnswerBench, item: Any, number: int, arm: Any) -> Any:
        if item.task == "niah_multikey" and arm.name == "passages":
            raise TOO_LONG
        return measure(self, item, number, arm)

    monkeypatch.setattr(AnswerBench, "measure", refuse_one)
    command = "bench adaptation --model tiny --lengths 256 --documents 1 --arms none,passages --out"
    shown = run(*command.split(), tmp_path)
    assert shown.exit_code == 1
    assert "requests failed; the first: niah_multikey 256 0 0 passages: document: it is" in (
        shown.stderr
    )
    assert "niah_single 256 (1)" in (tmp_path / "report.md").read_text()  # the rest is reported


def test_regimes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measure = AdaptationBench.measure

    def refuse_one(self: AdaptationBench, item: Any, objective: Any) -> Any:
        if item.task == "niah_multikey" and objective == "ntp":
            raise TOO_LONG
        return measure(self, item, objective)

    monkeypatch.setattr(AdaptationBench, "measure", refuse_one)
    command = "bench regimes --model tiny --lengths 160 --documents 1 --regimes memory --adapt"
    settings = '{"optimizer": {"steps": 1}, "rollouts": {"positions": 2}}'
    shown = run(*command.split(), settings, "--out", tmp_path)
    assert shown.exit_code == 1
    assert "1 of 6 requests failed; the first: niah_multikey 160 0 ntp: document: it is" in (
        shown.stderr
    )
    assert "| memory | niah_single | 160 | 1 |" in (tmp_path / "report.md").read_text()


def test_overhead(scripted: Any) -> None:
    def refuse(body: dict[str, Any]) -> str:
        raise ValueError("broken")

    scripted.say = refuse
    urls = {"ours": f"{scripted.url}/v1/answers", "echo": f"{scripted.url}/v1/answers"}
    with pytest.raises(RunFailedError, match=r"answered with 422: .*broken"):
        compare(urls, clients=1, rate=100, requests=50, repeats=1)
    gone = dict.fromkeys(("ours", "echo"), "http://127.0.0.1:9/")
    with pytest.raises(RunFailedError, match=r"127\.0\.0\.1:9/ failed: Connect"):
        compare(gone, clients=1, rate=100, requests=50, repeats=1)


def test_a_server_that_does_not_start(tmp_path: Path) -> None:
    server = ServerProcess({"model": "no-such-model"}, {}, tmp_path / "log")
    with pytest.raises(RunFailedError, match=r"ended during its start: (.|\n)*no-such-model"):
        server.start()
    starting = idle_servers._running(_end_at_once)
    with pytest.raises(RunFailedError, match="a server ended with status"):
        starting.__enter__()


def _end_at_once(port: int) -> None:
    raise SystemExit(3)


def test_reliability(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("wrong", "lost", "leaked", "errors_5xx", "store_corruptions", "stuck", "exit_status")
    result = {**dict.fromkeys(names, 0), "lost": 2, "notes": ["lost: adapt-1 after a kill: 404"]}
    monkeypatch.setattr(reliability_bench.ReliabilityBench, "run", lambda *_: dict(result))
    monkeypatch.setattr(faults.Faults, "run", lambda _: {"disk_full": "passed"})
    run_failing(1, "lost 2; the first: lost: adapt-1 after a kill: 404", "bench", "reliability")
    result |= {"lost": 0, "notes": []}
    monkeypatch.setattr(faults.Faults, "run", lambda _: {"disk_full": "failed: it ended with 1"})
    run_failing(1, "the first: disk_full: failed: it ended with 1", "bench", "reliability")


def test_fuzz(monkeypatch: pytest.MonkeyPatch) -> None:
    outcome = fuzz_bench.Outcome(failures=[(500, b"POST /x"), (599, b"GET /")])
    figures = {**outcome.figures(), "exit_status": 0}
    monkeypatch.setattr(fuzz_bench, "fuzz", lambda *_: figures)
    run_failing(1, "errors_5xx 2; the first: 500 for b'POST /x'", "bench", "fuzz")
