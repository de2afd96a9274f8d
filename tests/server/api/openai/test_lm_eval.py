"""lm-evaluation-harness, unmodified, against a real server: scores are the model's own."""

import json
import os
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
import torch
import yaml

from refine_server.ttt.models import CausalLM

pytest.importorskip("lm_eval", reason="`make harness` installs it")

ROWS = [
    ("The harbour code is amber. The bakery owner is Tobias Hartley.", "harbour code", "amber"),
    ("The island ship is phoenix. The museum metal is copper.", "museum metal", "copper"),
]
CHOICES = [" amber", " copper", " Tobias Hartley"]
DOCUMENT = " ".join(document for document, _, _ in ROWS)

# What its command line does, less the index of the thousands of tasks that it brings along.
RUN = """
import json, sys
from lm_eval import simple_evaluate
from lm_eval.tasks import TaskManager
folder, runs = sys.argv[1], json.loads(sys.argv[2])
tasks = TaskManager(include_path=folder, include_defaults=False)
samples = {}
for run in runs:
    samples |= simple_evaluate(task_manager=tasks, bootstrap_iters=0, **run)["samples"]
with open(f"{folder}/samples.json", "w") as file:
    json.dump(samples, file, default=str)
"""


def write_tasks(folder: Path) -> None:
    rows = [
        {
            "prompt": f"{document}\n\nQuestion: What is the {key}?\nAnswer:",
            "question": f"What is the {key}?",
            "answer": f" {value}",
            "choices": CHOICES,
        }
        for document, key, value in ROWS
    ]
    data = folder / "data.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    shared = {
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(data)}},
        "test_split": "test",
        "target_delimiter": "",
        "doc_to_target": "{{answer}}",
    }
    generate = {
        **shared,
        "output_type": "generate_until",
        "generation_kwargs": {"until": ["."], "max_gen_toks": 6},
        "metric_list": [{"metric": "exact_match"}],
    }
    tasks = {
        "choose": {
            **shared,
            "output_type": "multiple_choice",
            "doc_to_text": "{{prompt}}",
            "doc_to_choice": "{{choices}}",
            "metric_list": [{"metric": "acc"}],
        },
        "generate": {**generate, "doc_to_text": "{{prompt}}"},
        "chat": {**generate, "doc_to_text": "{{question}}"},
    }
    for name, task in tasks.items():
        (folder / f"{name}.yaml").write_text(yaml.safe_dump({"task": name, **task}))


def log_likelihood(model: CausalLM, context: str, continuation: str) -> tuple[float, bool]:
    before = model.tokenizer(context)["input_ids"]
    ids = model.tokenizer(context + continuation)["input_ids"]
    with torch.no_grad():
        log_probs = model(torch.tensor([ids])).logits[0].log_softmax(-1)[len(before) - 1 : -1]
    own = torch.tensor(ids[len(before) :])
    score = log_probs.gather(-1, own[:, None]).sum().item()
    return score, bool((log_probs.argmax(-1) == own).all())


def test_the_harness_scores_and_generates(tiny_url: str, tiny: CausalLM, tmp_path: Path) -> None:
    write_tasks(tmp_path)
    made = httpx.post(
        f"{tiny_url}/v1/adaptations",
        json={
            "document": DOCUMENT,
            "adapt": {"rollouts": {"positions": 2}, "optimizer": {"steps": 2}},
        },
        timeout=60,
    )
    adaptation = made.json()["id"]
    runs = [
        {
            "model": "local-completions",
            "model_args": f"base_url={tiny_url}/v1/completions,model=tiny,num_concurrent=2",
            "batch_size": 2,
            "tasks": ["choose", "generate"],
        },
        {
            "model": "local-chat-completions",
            "model_args": f"base_url={tiny_url}/v1/chat/completions,model={adaptation}",
            "apply_chat_template": True,
            "tasks": ["chat"],
        },
    ]
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(tmp_path / "hf")}
    done = subprocess.run(
        [sys.executable, "-c", RUN, str(tmp_path), json.dumps(runs)],
        env={**os.environ, **offline, "TQDM_DISABLE": "1"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    metrics = httpx.get(f"{tiny_url}/metrics").text
    assert 'refine_requests_total{endpoint="/tokenize",status="200"}' in metrics
    samples = json.loads((tmp_path / "samples.json").read_text())
    for records in samples.values():
        records.sort(key=lambda sample: int(sample["doc_id"]))
    for sample, (document, key, _) in zip(samples["choose"], ROWS, strict=True):
        context = f"{document}\n\nQuestion: What is the {key}?\nAnswer:"
        for (score, greedy), continuation in zip(sample["filtered_resps"], CHOICES, strict=True):
            expected, is_greedy = log_likelihood(tiny, context, continuation)
            assert score == pytest.approx(expected, abs=1e-4)
            assert greedy is is_greedy
        assert sample["acc"] == 1.0
    for task in ("generate", "chat"):
        answers = [sample["filtered_resps"] for sample in samples[task]]
        assert answers == [[" amber"], [" copper"]]
        assert [sample["exact_match"] for sample in samples[task]] == [1.0, 1.0]


TASKS = Path(__file__).parents[4] / "benchmarks" / "quality" / "lm_eval_tasks"
OWN_TASKS = """
import json, sys
from lm_eval import simple_evaluate
from lm_eval.tasks import TaskManager
runs, results = json.loads(sys.argv[1]), []
for run in runs:
    metadata = run.pop("metadata")
    tasks = TaskManager(include_path=sys.argv[2], include_defaults=False, metadata=metadata)
    told = simple_evaluate(task_manager=tasks, bootstrap_iters=0, log_samples=True, **run)
    [samples] = told["samples"].values()
    results.append([told["results"]["refine_longbench_trec"]["score,none"], samples[0]["doc"]])
print(json.dumps(results))
"""


def test_the_projects_tasks_run_in_chats_and_with_slashes_at_the_end(
    tiny_url: str, tmp_path: Path
) -> None:
    row = {
        "input": "Question: Who?\nType:",
        "context": "Question: What is it?\nType: Food\n" * 90,
        "answers": ["Food"],
        "length": 9,
        "dataset": "trec",
        "language": "en",
        "all_classes": ["Food", "Human"],
        "_id": "1",
    }
    (tmp_path / "trec.jsonl").write_text(json.dumps(row) + "\n")
    runs = []
    for kind, path in {
        "local-completions": "/v1/completions/",
        "local-chat-completions": "/v1/chat/completions",
        "local-chat-completions ": "/v1/chat/completions/",
    }.items():
        address = {"base_url": f"{tiny_url}{path}", "model": "tiny"}
        if "chat" not in path:
            address["max_length"] = "2048"
        # What the command line hands to tasks: the metadata, with the model's arguments.
        metadata = {"longbench_data": str(tmp_path), **address}
        runs.append(
            {
                "model": kind.strip(),
                "model_args": ",".join(f"{name}={value}" for name, value in address.items()),
                "apply_chat_template": "chat" in kind,
                "tasks": ["refine_longbench_trec"],
                "metadata": metadata,
            }
        )
    arguments = [sys.executable, "-c", OWN_TASKS, json.dumps(runs), str(TASKS)]
    offline = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_DATASETS_CACHE": str(tmp_path / "cache")}
    done = subprocess.run(arguments, capture_output=True, text=True, env=offline, check=False)
    assert done.returncode == 0, done.stderr
    results = json.loads(done.stdout.splitlines()[-1])
    assert len(results) == 3
    for score, doc in results:
        assert 0 <= score <= 100
        assert "Who?" in doc["prompt"]
