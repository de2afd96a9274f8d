"""The task folder for lm-evaluation-harness, as lm_eval reads and runs it."""

import json
from pathlib import Path
from typing import Any

import pytest

from refine_server.benchmarks.common.rows import DataError
from refine_server.benchmarks.quality.longbench.tasks import tasks
from refine_server.benchmarks.quality.ruler.samples import templates

lm_eval = pytest.importorskip("lm_eval", reason="`make harness` installs it")

FOLDER = Path(__file__).parents[3] / "benchmarks" / "quality" / "lm_eval_tasks"
TOKENIZER = str(Path(__file__).parents[3] / "ttt" / "models" / "bundled" / "tiny")


@pytest.fixture
def metadata(tmp_path: Path) -> dict[str, str]:
    row = {"input": "Who?", "context": "It is Ada. " * 90, "answers": ["Ada"], "length": 9,
           "dataset": "hotpotqa", "language": "en", "all_classes": None, "_id": "1"}  # fmt: skip
    (tmp_path / "hotpotqa.jsonl").write_text(json.dumps(row) + "\n")
    sample = {"index": 1, "task": "qa_1", "context": "It is Ada.", "query": "Who?",
              "outputs": ["Ada", "nobody"]}  # fmt: skip
    (tmp_path / "ruler.jsonl").write_text(json.dumps(sample) + "\n")
    return {
        "longbench_data": str(tmp_path),
        "ruler_data": str(tmp_path / "ruler.jsonl"),
        "max_length": "400",
        "tokenizer": TOKENIZER,
    }


def manager(metadata: dict[str, str]) -> Any:
    from lm_eval.tasks import TaskManager

    return TaskManager(include_path=str(FOLDER), include_defaults=False, metadata=metadata)


def test_every_task_is_there_with_its_generation_length(metadata: dict[str, str]) -> None:
    expected = {f"refine_longbench_{task.name}": task.max_tokens for task in tasks().values()}
    expected |= {
        f"refine_ruler_{name}": template.max_tokens
        for name, template in templates().items()
        if name != "niah_one"
    }
    assert set(manager(metadata).all_tasks) - {"refine_longbench", "refine_ruler"} == set(expected)
    for name, length in expected.items():
        file = FOLDER / f"{name.removeprefix('refine_')}.yaml"
        assert f"max_gen_toks: {length}\n" in file.read_text()


@pytest.mark.parametrize("task", ["longbench_hotpotqa", "ruler_qa"])
def test_prompts_are_not_cut_unnoticed(metadata: dict[str, str], task: str) -> None:
    """Without max_length the harness keeps the last 2,047 tokens of a prompt, but not in chats."""
    del metadata["max_length"]
    completions = {**metadata, "base_url": "http://127.0.0.1:9/v1/completions"}
    with pytest.raises(DataError, match="needs max_length=N"):
        manager(completions).load([f"refine_{task}"])
    chats = {**metadata, "base_url": "http://127.0.0.1:9/v1/chat/completions"}
    if task == "ruler_qa":
        assert manager(chats).load([f"refine_{task}"])


def test_lm_eval_asks_and_scores_over_http(scripted: Any, metadata: dict[str, str]) -> None:
    scripted.say = lambda body: " Ada." if "Who?" in body["prompt"] else "?"
    address = f"base_url={scripted.url}/v1/completions"
    evaluation = lm_eval.simple_evaluate(
        model="local-completions",
        model_args=f"model=scripted,{address},tokenizer_backend=None,max_length=4096",
        tasks=["refine_longbench_hotpotqa", "refine_ruler_qa"],
        task_manager=manager(metadata),
        bootstrap_iters=0,
    )
    scores = {name: of["score,none"] for name, of in evaluation["results"].items()}
    assert scores == {"refine_longbench_hotpotqa": 100, "refine_ruler_qa": 100}
    prompts = {body["max_tokens"]: body["prompt"] for body in scripted.bodies}
    assert prompts[32].startswith("Answer the question based on the given")
    assert len(scripted.bodies) == 2
