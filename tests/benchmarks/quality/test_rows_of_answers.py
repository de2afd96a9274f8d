"""Rows have the answers, the steps that led to them, and traces if they are asked for."""

import json
from pathlib import Path
from typing import Any

import pytest

from refine_server.benchmarks.common import traces
from refine_server.benchmarks.common.traces import stored_steps
from support.command_line import run

TRACE = {
    "positions": [
        {
            "row": 0,
            "token": 9,
            "start": 31,
            "end": 40,
            "entropy": 1.5,
            "own": {"tokens": [4, 6], "pieces": ["it", " is"]},
            "rollouts": [
                {
                    "tokens": [4, 5],
                    "pieces": ["it", " was"],
                    "matches": [True, False],
                    "reward": 0.5,
                    "advantage": 0.0,
                    "is_demonstration": False,
                }
            ],
        }
    ],
    "left_out": 0,
    "weights": [{"layer": 0, "change": 0.25, "relative": 0.01}],
    "held_out": None,
}
REPORT = {"loss", "ntp_loss", "grpo_loss", "reward_mean", "entropy_mean", "grad_norm", "seconds"}
"""Some figures of a step's report."""


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_step_keeps_its_report_and_its_trace() -> None:
    assert stored_steps([{"step": 1, "trace": TRACE}]) == [{"step": 1, "trace": TRACE}]
    assert stored_steps([{"step": 1, "trace": None}]) == [{"step": 1}]


def test_traces_beyond_the_limit_are_left_out_and_the_row_says_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    size = len(json.dumps(TRACE))
    monkeypatch.setattr(traces, "MAX_BYTES", 2 * size + 1)
    steps = stored_steps({"step": number, "trace": TRACE} for number in (1, 2, 3))
    assert steps[1] == {"step": 2, "trace": TRACE}
    assert steps[2] == {"step": 3, "trace_left_out": size}


@pytest.mark.parametrize("asked", [True, False])
def test_predictions_of_a_replay(scripted: Any, tmp_path: Path, asked: bool) -> None:
    scripted.trace = TRACE
    scripted.held_out = [{"step": 0, "loss": 2.0, "accuracy": 0.5, "seconds": 0.1}]
    row = {"task": "qa_1", "context": "It is so.", "query": "What?", "index": 7, "outputs": ["so"]}
    data = tmp_path / "qa.jsonl"
    data.write_text(json.dumps(row) + "\n")
    command = ["bench", "ruler", "--url", scripted.url, "--data", data, "--objectives", "refine"]
    shown = run(*command, "--out", tmp_path / "run", *(["--traces"] if asked else []))
    assert shown.exit_code == 0, shown.output
    assert scripted.bodies[0]["adapt"].get("trace", False) is asked
    [line] = rows_of(tmp_path / "run" / "predictions.jsonl")
    assert line["prediction"] == "yes"
    assert (line["accepted_step"], line["stopped"]) == (2, None)
    assert line["held_out"] == scripted.held_out
    assert len(line["steps"]) == 2
    assert line["steps"][0].keys() >= REPORT
    assert line["steps"][0].get("trace") == (TRACE if asked else None)


def test_results_of_adaptation(tmp_path: Path) -> None:
    command = (
        "bench adaptation --model tiny --lengths 256 --documents 1 --arms none,document-refine"
    )
    shown = run(*command.split(), "--traces", "--out", tmp_path)
    assert shown.exit_code == 0, shown.output
    unadapted, adapted = rows_of(tmp_path / "results.jsonl")[:2]
    assert unadapted["answer"]
    assert not unadapted["steps"]
    _require_trace(adapted)
    assert adapted["held_out"][0]["step"] == 0
    assert adapted["accepted_step"] in {judged["step"] for judged in adapted["held_out"]}


def test_results_of_regimes(tmp_path: Path) -> None:
    settings = '{"optimizer": {"steps": 1}, "rollouts": {"positions": 2}}'
    command = "bench regimes --model tiny --lengths 160 --documents 1 --regimes memory,context"
    shown = run(*command.split(), "--traces", "--adapt", settings, "--out", tmp_path)
    assert shown.exit_code == 0, shown.output
    rows = rows_of(tmp_path / "results.jsonl")
    refine = next(row for row in rows if row["objective"] == "refine")
    assert refine["answers"].keys() == {"memory", "context"}
    assert all(isinstance(text, str) for texts in refine["answers"].values() for text in texts)
    _require_trace(refine)


def _require_trace(row: dict[str, Any]) -> None:
    step = row["steps"][0]
    assert step.keys() >= REPORT
    position = step["trace"]["positions"][0]
    assert position.keys() == {"row", "token", "start", "end", "entropy", "own", "rollouts"}
    assert position["rollouts"][0]["reward"] >= 0
