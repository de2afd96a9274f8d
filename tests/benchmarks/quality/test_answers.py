"""``bench adaptation``: arms as requests, stored results, and the report."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from refine_server.benchmarks.common.rows import DataError
from refine_server.benchmarks.quality.answers.arms import ARMS, arms_of
from refine_server.benchmarks.quality.answers.bench import AnswerBench, Result
from refine_server.benchmarks.quality.answers.report import Summary
from refine_server.benchmarks.quality.regimes.items import Item, tiny_items
from refine_server.ttt.interface.evidence import EvidenceByWords, EvidenceSpans
from refine_server.ttt.interface.requests import DEFAULT_ADAPTATION, DEFAULT_CONTEXT, Limits
from refine_server.ttt.models import CausalLM, load
from support.command_line import run


@pytest.fixture(scope="module")
def tiny() -> CausalLM:
    return load("tiny")


@pytest.fixture(scope="module")
def item() -> Item:
    return next(tiny_items([512], 1, 0, "dev"))


def result(task: str, id: str, arm: str, score: float, seconds: float = 1.0) -> Result:
    return Result(
        task=task,
        length=0,
        id=id,
        question=0,
        arm=arm,
        score=score,
        answer="x",
        seconds=seconds,
        adapt_seconds=0.0,
        tokens=9,
        accepted_step=0,
    )


def test_the_default_arm_is_what_a_request_gets_that_says_nothing(item: Item) -> None:
    request = ARMS["default"].request(item, item.questions[0], lambda text: [])
    assert (request.context, request.adapt) == (DEFAULT_CONTEXT, DEFAULT_ADAPTATION)
    assert isinstance(request.evidence, EvidenceByWords)


def test_random_evidence_depends_on_the_document_alone(tiny: CausalLM, item: Item) -> None:
    bench = AnswerBench(tiny, [])
    arm = ARMS["random-passages"]

    def locate(text: str) -> list[tuple[int, int]]:
        return bench.template.locate_tokens(text, Limits().document_tokens)[1]

    one, again = (arm.request(item, item.questions[0], locate).evidence for _ in range(2))
    other = arm.request(replace(item, id="other"), item.questions[0], locate).evidence
    assert isinstance(one, EvidenceSpans)
    assert one == again
    assert one != other


def test_a_run_goes_on_where_it_was(tiny: CausalLM, item: Item, tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    bench = AnswerBench(tiny, arms_of(["none", "passages"]))
    short = replace(item, questions=item.questions[:1])
    first = list(bench.run([short], path, resume=True))
    assert [r.arm for r in first] == ["none", "passages"]
    assert [json.loads(line) for line in path.read_text().splitlines()] == [
        asdict(r) for r in first
    ]
    altered = replace(first[0], score=12.5)
    path.write_text("".join(json.dumps(asdict(r)) + "\n" for r in (altered, first[1])))
    assert list(bench.run([short], path, resume=True)) == [altered, first[1]]


@pytest.mark.parametrize("names", [[], ["none", "nothing"]])
def test_unknown_arms_are_refused(names: list[str]) -> None:
    with pytest.raises(DataError, match="is not one of none, passages"):
        arms_of(names)


def test_only_documents_that_all_arms_answered_are_compared() -> None:
    results = [
        *(result("qa", "1", "none", 0.0, 3.0), result("qa", "1", "passages", 50.0)),
        *(result("qa", "2", "none", 20.0, 5.0), result("qa", "2", "passages", 40.0)),
        result("qa", "3", "none", 100.0, 90.0),
    ]
    summary = Summary(results, ["none", "passages"])
    figures = summary.figures()
    assert figures["n"] == 2
    assert figures["scores"] == {"none": 10.0, "passages": 45.0}
    assert figures["seconds"] == {"none": 4.0, "passages": 1.0}
    compared = summary.compared("passages", "none")
    assert (compared.wins, compared.difference.mean) == (2, 35.0)
    assert "| passages | 45.0 |" in summary.markdown("t", "c", "a")


def test_the_command_prints_scores_by_arm(tmp_path: Path) -> None:
    command = "bench adaptation --model tiny --lengths 512 --documents 1 --json --out"
    shown = run(*command.split(), str(tmp_path))
    assert shown.exit_code == 0
    figures = json.loads(shown.stdout.splitlines()[-1])
    assert set(figures["scores"]) == {"none", "passages", "default"}
    assert figures["n"] == 2
    assert (tmp_path / "report.md").read_text().startswith("## tiny, heldout")
    assert (tmp_path / "scores.png").stat().st_size > 1000


def test_rows_and_generated_documents_are_one_run(tmp_path: Path) -> None:
    row = {
        "index": 3,
        "context": "The harbour code is amber.",
        "query": "harbour code",
        "outputs": ["amber"],
        "length": 9,
    }
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps({**row, "index": n}) + "\n" for n in range(9)))
    command = "bench adaptation --model tiny --arms none --documents 1 --json"
    tasks = {}
    for lengths in ([], ["--lengths", "512"]):
        out = tmp_path / f"run{len(lengths)}"
        shown = run(*command.split(), "--data", data, *lengths, "--out", out)
        assert shown.exit_code == 0, shown.output
        lines = (out / "results.jsonl").read_text().splitlines()
        tasks[len(lengths)] = {json.loads(line)["task"] for line in lines}
    assert tasks[0] == {"qa_1"}
    assert tasks[2] == {"qa_1", "niah_single", "niah_multikey"}


def test_a_reading_that_arms_share_counts_for_each(tiny: CausalLM, item: Item) -> None:
    bench = AnswerBench(tiny, [])
    first, second = (bench.measure(item, 0, ARMS["none"]) for _ in range(2))
    [reading] = bench.reading_seconds.values()
    assert 0 < reading < min(first.seconds, second.seconds)
