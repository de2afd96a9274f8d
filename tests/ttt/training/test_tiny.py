"""The recipe of tiny, and the bundled model that it made."""

import json
import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from refine_server.ttt.decoding.prompts.prompt import PLAIN_PROMPT, PromptTemplate
from refine_server.ttt.interface.requests import Limits
from refine_server.ttt.models import load
from refine_server.ttt.models.bundled import tiny as shipped_directory
from refine_server.ttt.training import corpus, evaluate
from refine_server.ttt.training.cli import app
from refine_server.ttt.training.errors import TrainingError
from refine_server.ttt.training.run import CHECKPOINT
from refine_server.ttt.training.tiny import Recipe, Trainer, make_batch

EXAMPLES = Path(__file__).parents[3] / "examples"
SMALL = Recipe(
    steps=20, tokens_per_step=512, longest=120, warmup_steps=4, vocab_size=512, hidden_size=32,
    intermediate_size=64, learning_rate=1e-2,
)  # fmt: skip


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    trainer = Trainer(SMALL, tmp_path_factory.mktemp("run"))
    losses = []
    trainer.run(lambda p: losses.append(p.loss))
    return trainer, losses


def test_a_short_run_lowers_the_loss(uninterrupted):
    _, losses = uninterrupted
    assert len(losses) == 20
    assert sum(losses[-3:]) < sum(losses[:3]) - 1.5


def test_a_resumed_run_ends_in_the_same_weights(uninterrupted, tmp_path):
    Trainer(SMALL, tmp_path).run(until=10, save_every=5)
    resumed = Trainer(SMALL, tmp_path, resume=True)
    assert resumed.step == 10
    resumed.run()
    expected, _ = uninterrupted
    for name, weight in expected.model.state_dict().items():
        assert torch.equal(weight, resumed.model.state_dict()[name]), name
    assert resumed.tokens == expected.tokens


def test_another_recipes_checkpoint_is_refused(tmp_path):
    Trainer(SMALL, tmp_path).save()
    with pytest.raises(TrainingError, match="another recipe"):
        Trainer(replace(SMALL, seed=1), tmp_path, resume=True)


def test_a_batch_weighs_what_is_retrieved(uninterrupted):
    trainer, _ = uninterrupted
    batch = make_batch(SMALL, 3, trainer.tokenizer)
    assert batch.ids.shape[1] == batch.weights.shape[1] + 1
    assert (batch.weights[batch.retrieved] == SMALL.retrieved_weight).all()
    targets = batch.ids[:, 1:][batch.retrieved].tolist()
    assert trainer.tokenizer.eos_token_id in targets


def test_the_command_writes_a_model_that_loads(tmp_path):
    result = CliRunner().invoke(
        app, ["tiny", "--out", str(tmp_path), "--steps", "1", "--documents", "1"]
    )
    assert result.exit_code == 0, result.output
    summary = json.loads(result.stdout.strip().splitlines()[-1])
    assert summary == json.loads((tmp_path / "training.json").read_text())
    assert set(summary["exact_match"]) == {str(tokens) for tokens, _ in evaluate.LENGTHS}
    assert not (tmp_path / CHECKPOINT).exists()
    assert load(tmp_path).num_parameters == summary["parameters"]


def test_resuming_without_a_checkpoint_is_refused(tmp_path):
    with pytest.raises(TrainingError, match=f"--resume: {tmp_path}.* does not exist"):
        Trainer(SMALL, tmp_path, resume=True)


# -- the model in the package ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def shipped():
    return load("tiny")


def test_the_shipped_model_is_small():
    assert sum(f.stat().st_size for f in shipped_directory().iterdir()) < 5e6


def test_the_shipped_tokenizer_reads_a_prompt_in_parts_as_in_whole(shipped):
    tokenizer = shipped.tokenizer
    template = PromptTemplate(tokenizer)
    prompt = template.encode_document("The garden code is amber.", Limits())
    query = template.encode_query("garden code?", Limits())
    whole = PLAIN_PROMPT.format(document="The garden code is amber.", query="garden code?")
    assert prompt.header == []
    assert prompt.document + query == tokenizer(whole)["input_ids"]
    text = "# Größe: 12, naïve\t✓\n\n\n  two"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_the_shipped_model_answers(shipped):
    rng = random.Random("shipped")
    right = 0
    for _ in range(5):
        document, questions = corpus.make_test(rng, 300, 8, 4)
        answers = evaluate.greedy_answers(shipped, document.text, [q.query for q in questions])
        right += sum(a == q.answer for a, q in zip(answers, questions, strict=True))
    assert right >= 18


def test_training_json_records_what_was_measured(shipped):
    recorded = json.loads((shipped_directory() / "training.json").read_text())
    assert recorded["parameters"] == shipped.num_parameters
    assert recorded["recipe"]["hidden_size"] == shipped.config.hidden_size
    assert recorded["exact_match"]["250"] >= 0.95
    assert recorded["exact_match"]["2000"] >= 0.8
    again = evaluate.exact_match(shipped, 250, 8, documents=5)
    assert abs(again - recorded["exact_match"]["250"]) <= 0.1


@pytest.mark.parametrize("name", ["tiny_example", "tiny_long"])
def test_the_shipped_model_answers_the_examples(shipped, name):
    example = json.loads((EXAMPLES / f"{name}.json").read_text())
    document = (EXAMPLES / example["document"]).read_text()
    queries = [question["query"] for question in example["questions"]]
    answers = evaluate.greedy_answers(shipped, document, queries)
    for answer, question in zip(answers, example["questions"], strict=True):
        assert answer in question["answers"], question["query"]
