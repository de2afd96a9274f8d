"""Rows, prompts, truncation and scores of LongBench."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from typer.testing import CliRunner

from refine_server.benchmarks.common.rows import DataError
from refine_server.benchmarks.quality.longbench.data import bucket, load
from refine_server.benchmarks.quality.longbench.metrics import METRICS
from refine_server.benchmarks.quality.longbench.prompts import cut_middle, split_prompt
from refine_server.benchmarks.quality.longbench.score import score_file
from refine_server.benchmarks.quality.longbench.tasks import task_of, tasks
from refine_server.server.cli.main import app

GOLDEN = Path(__file__).parents[4] / "shared" / "data" / "longbench_metrics_golden.jsonl"

ROW = {
    "input": "Who won?",
    "context": "Alpha beat Beta.",
    "answers": ["Alpha", "the Alphas"],
    "length": 3,
    "dataset": "hotpotqa",
    "language": "en",
    "all_classes": None,
    "_id": "x1",
}
TYPES = ["Other", "location", "Other location"]

BY_HAND: list[tuple[str, str, list[str], list[str] | None, float]] = [
    ("hotpotqa", "The Alpha!", ["Beta", "alpha"], None, 100),
    ("hotpotqa", "red green blue", ["green blue yellow white"], None, 57.14),  # p 2/3, r 1/2
    ("hotpotqa", "red red", ["red"], None, 66.67),  # p 1/2, r 1
    ("hotpotqa", "", ["Alpha"], None, 0),
    ("2wikimqa_e", "one\ntwo", ["two"], None, 66.67),  # no first-line rule here
    ("triviaqa", "\n\none\ntwo", ["one"], None, 100),  # first line only
    ("multifieldqa_zh", "北京。", ["北京"], None, 100),
    ("multifieldqa_zh", "上海", ["北京"], None, 0),
    ("gov_report", "the cat sat", ["the cat ran"], None, 66.67),
    ("gov_report", "", ["the cat ran"], None, 0),
    # Lin 2004's example: the union of two sentences' subsequences has 4 of 5 and of 8 words.
    ("qmsum", "a b f g h. a c h i e", ["a b c d e"], None, 61.54),
    ("samsum", "the cat sat\nDialogue: no", ["the cat ran"], None, 66.67),
    ("dureader", "北京", ["北京"], None, 100),
    ("trec", "Other location\nType: x", ["Other location"], ["location", "Other location"], 100),
    ("trec", "location", ["Other location"], TYPES, 0),
    # "Other" is dropped, and with it the official loop passes over "location": 1 of 2.
    ("trec", "Other location", ["Other location"], TYPES, 50),
    ("passage_count", "There are 3, or 4", ["3"], None, 50),
    ("passage_count", "none", ["3"], None, 0),
    ("passage_retrieval_en", "Paragraph 3, not 13", ["Paragraph 3"], None, 50),
    ("passage_retrieval_zh", "段落7", ["段落7"], None, 100),
    ("lcc", "\n# set it\nint x = 1;\nmore", ["int x = 2;"], None, 90),  # 9 of 10 letters
    ("lcc", "// only a comment", ["int x = 2;"], None, 0),
    ("repobench-p", "abc", ["abcd"], None, 86),  # 2 * 3 / 7 in whole percents
]


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_scores_equal_scores_computed_by_hand(tmp_path: Path) -> None:
    names = ("dataset", "prediction", "answers", "all_classes")
    rows = [dict(zip(names, row[:4], strict=True)) for row in BY_HAND]
    scored = score_file(write(tmp_path / "rows.jsonl", rows))
    assert scored["rows"] == [row[4] for row in BY_HAND]
    assert {METRICS[task_of(row[0]).metric] for row in BY_HAND} == set(METRICS.values())


@pytest.mark.skipif(not GOLDEN.exists(), reason="needs the official scorer's own scores")
def test_scores_equal_the_official_scores() -> None:
    expected = [json.loads(line)["score"] for line in GOLDEN.read_text().splitlines()]
    assert score_file(GOLDEN)["rows"] == pytest.approx(expected, abs=0.01)


def test_the_scorer_prints_one_object_with_means(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"dataset": "hotpotqa_e", "pred": "Alpha", "answers": ["Alpha"], "length": 3999},
        {"dataset": "hotpotqa_e", "pred": "Beta", "answers": ["Alpha"], "length": 8000},
        {"dataset": "lcc_e", "pred": "abc", "answers": ["abcd"], "length": 4000},
    ]
    file = write(tmp_path / "rows.jsonl", rows)
    completed = CliRunner().invoke(app, ["bench", "longbench-score", str(file), "--json"])
    assert completed.exit_code == 0
    assert json.loads(completed.stdout.splitlines()[-1]) == {
        "rows": [100, 0, 86],
        "average": 62,
        "tasks": {"hotpotqa": 50, "lcc": 86},
        "task_average": 68,
        "buckets": {"hotpotqa": {"0-4k": 100, "8k+": 0}, "lcc": {"4-8k": 86}},
    }


def test_objectives_are_scored_apart_and_never_pooled(tmp_path: Path) -> None:
    """A mean over several objectives would be the score of no method."""
    row = {"dataset": "hotpotqa", "answers": ["Alpha"]}
    rows = [
        {**row, "prediction": "Alpha", "objective": "refine"},
        {**row, "prediction": "Beta", "objective": "none"},
        {**row, "prediction": "Beta", "objective": "refine"},
    ]
    scored = score_file(write(tmp_path / "rows.jsonl", rows))
    assert scored.keys() == {"objectives"}
    assert {o: of["average"] for o, of in scored["objectives"].items()} == {"refine": 50, "none": 0}
    assert scored["objectives"]["refine"]["rows"] == [100, 0]
    del rows[0]["objective"]
    with pytest.raises(DataError, match="some rows have an objective and others have none"):
        score_file(write(tmp_path / "mixed.jsonl", rows))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"dataset": "hotpot"}, "row 1: dataset: 'hotpot' is not a LongBench task"),
        ({"answers": "Alpha"}, "row 1: answers: must be a list"),
        ({"answers": []}, "row 1: answers: must have at least one"),
        ({"prediction": None}, "row 1: prediction: must be a string"),
        ({"dataset": "trec"}, "row 1: all_classes: trec needs"),
    ],
)
def test_the_scorer_names_what_is_wrong(
    tmp_path: Path, changed: dict[str, Any], message: str
) -> None:
    row = {"dataset": "hotpotqa", "prediction": "x", "answers": ["y"], "all_classes": None}
    file = write(tmp_path / "rows.jsonl", [{**row, **changed}])
    completed = CliRunner().invoke(app, ["bench", "longbench-score", str(file)])
    assert completed.exit_code == 2
    assert message in completed.stderr


def test_an_unreadable_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="No such file"):
        score_file(tmp_path / "none.jsonl")
    (tmp_path / "bad.jsonl").write_text('{"dataset": "lcc"}\n\n[]\n')
    with pytest.raises(DataError, match="row 1: the field 'prediction' is missing"):
        score_file(tmp_path / "bad.jsonl")
    (tmp_path / "bad.parquet").write_bytes(b"nonsense")
    with pytest.raises(DataError, match=r"bad\.parquet is not a parquet file"):
        score_file(tmp_path / "bad.parquet")


def test_the_tasks_are_those_of_longbench() -> None:
    assert len(tasks()) == 21
    assert sum(task.language == "zh" for task in tasks().values()) == 5
    assert sum(task.extended for task in tasks().values()) == 13
    assert {task.name for task in tasks().values() if task.first_line} == {
        "trec",
        "triviaqa",
        "samsum",
        "lsht",
    }
    for task in tasks().values():
        assert task.prompt.count("{context}") == 1
        assert task.before.strip()
        assert task.after("q").strip()
        assert 32 <= task.max_tokens <= 512
    assert [bucket(n) for n in (0, 3999, 4000, 7999, 8000)] == ["0-4k"] * 2 + ["4-8k"] * 2 + ["8k+"]


def as_json_lines(folder: Path, rows: list[dict[str, Any]]) -> None:
    write(folder / "hotpotqa.jsonl", rows)


def as_parquet(folder: Path, rows: list[dict[str, Any]]) -> None:
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), folder / "hotpotqa.parquet")


def as_shards(folder: Path, rows: list[dict[str, Any]]) -> None:
    (folder / "hotpotqa").mkdir()
    for number, row in enumerate(rows):
        table = pyarrow.Table.from_pylist([row])
        pyarrow.parquet.write_table(table, folder / "hotpotqa" / f"test-0000{number}.parquet")


@pytest.mark.parametrize("save", [as_json_lines, as_parquet, as_shards])
def test_rows_are_read_as_published(
    tmp_path: Path, save: Callable[[Path, list[dict[str, Any]]], None]
) -> None:
    save(tmp_path, [ROW, {**ROW, "_id": "x2"}, {**ROW, "_id": "x3"}])
    first, second = load(tmp_path, [], limit=2)
    assert (first.id, second.id) == ("x1", "x2")
    assert first.task.name == "hotpotqa"
    assert (first.context, first.question) == (ROW["context"], ROW["input"])
    assert (first.answers, first.classes, first.length) == (("Alpha", "the Alphas"), (), 3)


def test_missing_data_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="has no file"):
        load(tmp_path, [])
    with pytest.raises(DataError, match=r"neither lcc\.jsonl nor lcc\.parquet"):
        load(tmp_path, ["lcc"])
    with pytest.raises(DataError, match="--tasks: dataset: 'lc' is no"):
        load(tmp_path, ["lc"])
    with pytest.raises(DataError, match="is not a folder"):
        load(tmp_path / "none", [])


class Words:
    """A tokenizer whose tokens are words."""

    def __init__(self) -> None:
        self.words: list[str] = []

    def encode(self, text: str) -> list[int]:
        words = text.split()
        self.words += words
        return [self.words.index(word) for word in words]

    def decode(self, ids: list[int]) -> str:
        return " ".join(["", *(self.words[i] for i in ids), ""])


@pytest.mark.parametrize("length", [1, 19, 20, 21, 50])
def test_the_middle_of_the_whole_prompt_is_cut(length: int) -> None:
    text = " ".join(f"w{i}" for i in range(length))
    whole = ["b"] * 3 + text.split() + ["a"] * 5
    kept, was_cut = cut_middle(text, (3, 5), 28, Words())
    prompt = ["b"] * 3 + kept.split() + ["a"] * 5
    # The official rule, over the whole prompt's tokens.
    official = whole if len(whole) <= 28 else whole[:14] + whole[-14:]
    assert prompt == official
    assert was_cut == (length > 20)


def test_a_question_is_never_cut() -> None:
    text = " ".join(f"w{i}" for i in range(50))
    kept, _ = cut_middle(text, (1, 20), 24, Words())
    assert kept.split() == ["w0", "w1", "w2"]  # half of 24 would begin inside the question
    with pytest.raises(DataError, match="--max-length: the prompt needs 24 tokens"):
        cut_middle(text, (4, 20), 24, Words())


def test_document_and_query_make_the_official_prompt(tmp_path: Path) -> None:
    as_json_lines(tmp_path, [ROW])
    (row,) = load(tmp_path, ["hotpotqa"])
    asked = split_prompt(row, 1000, Words())
    official = row.task.prompt.replace("{context}", row.context).replace("{input}", row.question)
    assert asked.prompt == official
    assert f"{asked.document}\n\n{asked.query}" == official
    assert asked.document.endswith(row.context)
    assert not asked.truncated
