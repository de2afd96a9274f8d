"""``bench paper``: published rows, their scores, and weights that carry over from row to row."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
import torch
from torch import Tensor
from typer.testing import CliRunner

from refine_server.benchmarks.common.rows import DataError, read_rows
from refine_server.benchmarks.quality.paper.bench import PaperBench, Result, figures
from refine_server.benchmarks.quality.paper.carry_over import CarriedWeights
from refine_server.benchmarks.quality.paper.rows import PublishedRow
from refine_server.benchmarks.quality.regimes.items import file_items
from refine_server.server.cli.main import app
from refine_server.ttt.interface.config import AdaptConfig
from refine_server.ttt.models import CausalLM, load
from refine_server.ttt.refine.inputs.rows import Rows
from refine_server.ttt.refine.inputs.step_inputs import StepInputs
from refine_server.ttt.refine.naive import naive_gradient
from support.small_models import FAMILIES, VOCABULARY

PAPER = AdaptConfig(preset="paper")
BEFORE = (
    "Answer the question based on the given passages. Only give me the answer and do not output "
    "any other words.\n\nThe following are given passages.\n"
)
AFTER = (
    "Answer the question based on the given passages. Only give me the answer and do not output "
    "any other words.\n\nQuestion: {}\nAnswer:"
)
CONTEXT = "Document 1:\nThe harbour code is amber.\n\nDocument 2:\n" + "It rained until late. " * 30
QUESTION = "What is the harbour code?"


def published(index: int = 0, **changes: Any) -> dict[str, Any]:
    prompt = f"{BEFORE}{CONTEXT}\n\n{AFTER.format(QUESTION)}"
    row = {"index": index, "prompt": prompt, "answer": ["amber", "Amber light"]}
    return {**row, "max_seq_length": 4096, "task": "ruler_squadqa", **changes}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "ruler_squadqa_lact_4096.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([published(i) for i in range(5)]), path)
    return path


@pytest.fixture(scope="module")
def tiny() -> CausalLM:
    return load("tiny")


def test_rows_are_read_as_they_are_published(file: Path) -> None:
    rows = list(read_rows(file, PublishedRow.parse))
    assert len(rows) == 5
    assert rows[0].answers == ("amber", "Amber light")
    before, context, after, question = rows[0].parts()
    assert (context, question) == (CONTEXT, QUESTION)
    assert before + context + after == rows[0].prompt


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"answer": []}, "answer: must have at least one"),
        ({"answer": "amber"}, "answer: must be a list"),
        ({"task": "chess"}, "task: 'chess' is a task neither"),
        ({"prompt": None}, "task and prompt: must be strings"),
    ],
)
def test_a_row_that_cannot_be_used_is_named(tmp_path: Path, changes: Any, message: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(json.dumps(published(1, **c)) for c in ({}, changes)))
    with pytest.raises(DataError, match=f"row 2: {message}"):
        list(read_rows(path, PublishedRow.parse))


def test_the_first_line_of_an_answer_is_scored() -> None:
    row = PublishedRow.parse(published())
    assert row.score(" it is AMBER\nor not") == 100.0
    assert row.score("\namber") == row.score("coral") == 0.0
    question = PublishedRow(task="qasper", prompt="", answers=("in France", "Paris"))
    assert question.score("Paris\nor London") == 100.0
    code = PublishedRow(task="lcc", prompt="", answers=("x = 1",))
    assert code.score("# first\nx = 1") == 100.0
    kind = PublishedRow(task="trec", prompt="", answers=("City",))
    assert kind.score(" City\nCountry") == 100.0
    assert kind.score(" City or Country") == 50.0


def test_rows_are_items_of_the_other_benchmarks(file: Path) -> None:
    items = [item for part in ("dev", "heldout") for item in file_items(file, 9, part)]
    assert {item.id for item in items} == {"0", "1", "2", "3", "4"}
    item = items[0]
    [question] = item.questions
    assert item.before + item.context + "\n\n" + question.query == published()["prompt"]
    assert (question.about, question.score("amber")) == (QUESTION, 100.0)


def naive_steps(
    model: CausalLM, config: AdaptConfig, steps: Sequence[Sequence[Tensor]]
) -> dict[str, Tensor]:
    """Step torch's AdamW once for each group of prompts; every rollout reads its prefix again."""
    fast = model.new_fast_weights("all", 8, 0).requires_grad_()
    params, settings = fast.parameters(), config.optimizer
    optimizer = torch.optim.AdamW(params, lr=settings.learning_rate, weight_decay=0.01)
    generator = torch.Generator().manual_seed(config.seed)
    for prompts in steps:
        total = {name: torch.zeros_like(fast[name]) for name in fast}
        for ids in prompts:
            rows = Rows(model, ids[None], fast, positions=config.rollouts.positions)
            if config.objective == "refine":
                inputs = StepInputs(
                    ntp_rows=rows, rollout_rows=rows, fast=fast, config=config, generator=generator
                )
                gradient, _ = naive_gradient(inputs)
            else:
                loss = rows.token_stats(model(ids[None], None, fast).hidden, fast).ntp_loss
                names = list(fast)
                grads = torch.autograd.grad(loss, params, materialize_grads=True)
                gradient = dict(zip(names, grads, strict=True))
            for name in fast:
                total[name] += gradient[name] / len(prompts)
        for name in fast:
            fast[name].grad = total[name]
        torch.nn.utils.clip_grad_norm_(params, 1.0)
        optimizer.step()
    return {name: fast[name].detach() for name in fast}


@pytest.mark.parametrize("family", ["delta_net", "lact"])
@pytest.mark.parametrize("objective", ["refine", "ntp"])
def test_carried_weights_equal_one_optimiser_over_all_prompts(family: str, objective: str) -> None:
    """REFINE steps on each half of a batch, NTP on the whole batch; the moments carry over, too."""
    model = FAMILIES[family](torch.float64)
    config = PAPER.updated(
        objective=objective, rollouts={"positions": 4}, optimizer={"learning_rate": 1e-4}
    )
    generator = torch.Generator().manual_seed(1)
    lengths = range(60, 95, 7)
    prompts = [torch.randint(VOCABULARY, (length,), generator=generator) for length in lengths]
    carried, before = CarriedWeights(model, config), model.fingerprint()
    for batch in (prompts[:3], prompts[3:]):
        carried.adapt(batch)
    halves = [prompts[:2], prompts[2:3], prompts[3:4], prompts[4:]]
    steps = halves if objective == "refine" else [prompts[:3], prompts[3:]]
    expected = naive_steps(model, config, steps)
    base = model.new_fast_weights("all", 8, 0)
    for name in base:
        change = carried.fast[name].detach() - base[name]
        torch.testing.assert_close(change, expected[name] - base[name], atol=1e-10, rtol=1e-6)
    assert model.fingerprint() == before


def answers_of(
    model: CausalLM, config: AdaptConfig, batch: int | None, count: int, path: Path
) -> list[Result]:
    rows = [PublishedRow.parse(published(i)) for i in range(count)]
    return list(PaperBench(model, config, 400, batch).run(rows, ["none", "refine"], path))


def test_only_carried_weights_remember_the_rows_before(tiny: CausalLM, tmp_path: Path) -> None:
    """Three equal rows: fresh copies answer them alike; a large step on the first two shows."""
    config = PAPER.updated(optimizer={"learning_rate": 1e-2}, rollouts={"positions": 2})
    path = tmp_path / "results.jsonl"
    fresh = answers_of(tiny, config, None, 3, path)
    assert [r.objective for r in fresh] == ["none"] * 3 + ["refine"] * 3
    assert len({r.answer for r in fresh if r.objective == "refine"}) == 1
    carried = answers_of(tiny, config, 2, 3, path)
    unadapted = [r.answer for r in carried if r.objective == "none"]
    assert unadapted == [r.answer for r in fresh if r.objective == "none"]
    first, second, third = (r.answer for r in carried if r.objective == "refine")
    assert first == second != third
    assert [json.loads(line)["answer"] for line in path.read_text().splitlines()] == [
        r.answer for r in carried
    ]


def test_the_first_row_is_answered_alike_in_both_modes(tiny: CausalLM, tmp_path: Path) -> None:
    """Nothing was carried over yet, so that both make the same step."""
    config = PAPER.updated(optimizer={"learning_rate": 1e-2}, rollouts={"positions": 2})
    fresh = answers_of(tiny, config, None, 1, tmp_path / "fresh.jsonl")
    carried = answers_of(tiny, config, 1, 1, tmp_path / "carried.jsonl")
    assert [r.answer for r in fresh] == [r.answer for r in carried]


@pytest.mark.parametrize(
    ("changes", "batch", "message"),
    [
        ({"on": {"kind": "document"}}, None, "on.kind must be prompt"),
        ({"fast_weights": {"targets": "low_rank"}}, 8, "targets all"),
        ({"guard": "held_out"}, 8, "guard none"),
    ],
)
def test_settings_that_do_not_fit_are_refused(
    tiny: CausalLM, tmp_path: Path, changes: dict[str, Any], batch: int | None, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        answers_of(tiny, PAPER.updated(**changes), batch, 1, tmp_path / "results.jsonl")


def test_means_are_over_tasks_and_differences_over_rows() -> None:
    def results(objective: str, scores: dict[str, list[float]]) -> list[Result]:
        rest = {"tokens": 9, "answer": "", "adapt_seconds": 0.0, "answer_seconds": 0.0}
        return [
            Result(task=task, number=n, objective=objective, score=score, **rest)
            for task, own in scores.items()
            for n, score in enumerate(own)
        ]

    none = results("none", {"qasper": [0.0, 50.0], "trec": [0.0, 0.0, 0.0]})
    refine = results("refine", {"qasper": [50.0, 50.0], "trec": [100.0, 0.0, 0.0]})
    found = figures([*none, *refine])
    assert found["scores"]["refine"] == {"qasper": 50.0, "trec": 33.33}
    assert found["means"]["none"].startswith("12.5 [")
    assert found["differences"]["refine-none"].startswith("30.0 [")
    assert found["n"] == 5


@pytest.mark.parametrize("options", [[], ["--carry-over", "--batch", "2"]])
def test_the_command(file: Path, tmp_path: Path, options: list[str]) -> None:
    out = tmp_path / "out"
    arguments = ["bench", "paper", "--model", "tiny", "--data", str(file), "--rows", "2"]
    arguments += ["--max-length", "200", "--out", str(out), "--json", *options]
    ran = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert ran.exit_code == 0
    last = json.loads(ran.stdout.splitlines()[-1])
    assert last["scores"].keys() == {"none", "ntp", "refine"}
    assert (last["n"], last["carry_over"]) == (2, bool(options))
    lines = (out / "results.jsonl").read_text().splitlines()
    assert [json.loads(line)["tokens"] for line in lines] == [168] * 6
