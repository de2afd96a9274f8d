"""Mid-training: REFINE's loss steps the model's own weights, and a killed run can be resumed."""

import json
import random
from dataclasses import replace

import pytest
import torch
from typer.testing import CliRunner

from refine_server.ttt.fast_weights import BASE
from refine_server.ttt.interface.config import AdaptConfig, FastWeightConfig, RolloutConfig
from refine_server.ttt.models import load
from refine_server.ttt.refine.inputs.rows import Rows
from refine_server.ttt.training import corpus
from refine_server.ttt.training.cli import app
from refine_server.ttt.training.errors import TrainingError
from refine_server.ttt.training.midtraining import Recipe, Trainer, read_corpus
from refine_server.ttt.training.run import CHECKPOINT

ADAPT = AdaptConfig(
    rollouts=RolloutConfig(positions=2, per_position=2, tokens=2),
    fast_weights=FastWeightConfig(targets="all"),
    guard="none",
)
SMALL = Recipe(steps=4, rows=2, tokens=48, warmup_steps=1, adapt=ADAPT)


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    rng = random.Random("mid")
    file = tmp_path_factory.mktemp("corpus") / "filler.txt"
    file.write_text(" ".join(corpus.filler(rng) for _ in range(200)))
    return file


def trainer(text, out, recipe=SMALL, *, resume=False):
    model = load("tiny")
    return Trainer(recipe, model, read_corpus(model, [text]), out, resume=resume)


def test_the_next_token_loss_steps_the_models_own_weights(text, tmp_path):
    ntp = replace(SMALL, adapt=ADAPT.updated(objective="ntp"))
    run = trainer(text, tmp_path, ntp)
    run.loss().total.backward()
    inner = {name: weight.grad.clone() for name, weight in run.weights.items()}
    model = load("tiny").requires_grad_(True)
    rng = random.Random(f"mid:{ntp.seed}:0")
    starts = [rng.randint(0, len(run.corpus) - 48) for _ in range(2)]
    ids = torch.stack([run.corpus[start : start + 48] for start in starts])
    rows = Rows(model, ids, BASE)
    rows.token_stats(model(ids).hidden, BASE).ntp_loss.backward()
    for name, weight in model.named_parameters():
        torch.testing.assert_close(inner[name], weight.grad, rtol=1e-4, atol=1e-6)


def test_a_resumed_run_ends_in_the_same_weights(text, tmp_path):
    whole = trainer(text, tmp_path / "whole")
    before = {name: weight.detach().clone() for name, weight in whole.weights.items()}
    whole.run()
    assert any(not torch.equal(before[name], weight) for name, weight in whole.weights.items())
    trainer(text, tmp_path / "cut").run(until=2)
    resumed = trainer(text, tmp_path / "cut", resume=True)
    assert resumed.step == 2
    resumed.run()
    for name, weight in whole.weights.items():
        assert torch.equal(weight, resumed.weights[name]), name


def test_a_corpus_shorter_than_a_row_is_refused(text, tmp_path):
    with pytest.raises(TrainingError, match="a row takes 100000"):
        trainer(text, tmp_path, replace(SMALL, tokens=100_000))


def test_the_command_writes_a_model_that_loads(text, tmp_path):
    arguments = ["mid", "--out", str(tmp_path), "--corpus", str(text), "--steps", "1"]
    result = CliRunner().invoke(app, [*arguments, "--objective", "ntp"])
    assert result.exit_code == 0, result.output
    summary = json.loads(result.stdout.strip().splitlines()[-1])
    assert summary == json.loads((tmp_path / "training.json").read_text())
    assert summary["recipe"]["adapt"]["objective"] == "ntp"
    assert summary["started_from"]["command"] == "refine-server train tiny"
    assert not (tmp_path / CHECKPOINT).exists()
    assert load(tmp_path).fingerprint() != load("tiny").fingerprint()


def test_a_missing_corpus_is_refused(tmp_path):
    with pytest.raises(TrainingError, match=r"--corpus: cannot read .*no.txt"):
        trainer(tmp_path / "no.txt", tmp_path)
