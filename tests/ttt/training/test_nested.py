"""Nested post-training: the inner loop equals the server's, and the outer step learns."""

import json
import random
from dataclasses import replace

import pytest
import torch
from typer.testing import CliRunner

from refine_server.ttt import batching
from refine_server.ttt.fast_weights import BASE, FastWeights
from refine_server.ttt.interface.config import (
    AdaptConfig,
    FastWeightConfig,
    OptimizerConfig,
    RolloutConfig,
)
from refine_server.ttt.models import load
from refine_server.ttt.models.bundled import tiny_nested
from refine_server.ttt.refine.inputs.rows import Rows
from refine_server.ttt.refine.loop import adapt
from refine_server.ttt.training import corpus, evaluate, nested, run
from refine_server.ttt.training.cli import app
from refine_server.ttt.training.compare import compare

INNER = AdaptConfig(
    objective="ntp",
    rollouts=RolloutConfig(positions=2, tokens=2),
    optimizer=OptimizerConfig(learning_rate=0.01, steps=2),
    fast_weights=FastWeightConfig(targets="fast_weights", rank=4),
    guard="none",
)
SMALL = nested.Recipe(
    steps=4, adapt=INNER, sizes=((56, 6),), first_steps=4, most_documents=2, questions=2,
    pretraining_tokens=128, warmup_steps=1,
)  # fmt: skip


@pytest.fixture
def tiny():
    return load("tiny")


@pytest.fixture
def episode(tiny):
    return nested.make_episode(random.Random("episode"), tiny.tokenizer, 70, 6, 3, 2)


def test_questions_are_answered_by_the_part_that_is_read(tiny):
    for seed in range(20):
        made = nested.make_episode(random.Random(seed), tiny.tokenizer, 70, 6, 3, 4)
        for row, (targets, counted) in enumerate(zip(made.targets, made.counted, strict=True)):
            answer = tiny.tokenizer.decode(targets[counted][:-1])
            assert targets[counted][-1] == tiny.tokenizer.eos_token_id
            assert answer in tiny.tokenizer.decode(made.ids[row // 4])


def test_predicted_tokens_are_the_answers(episode):
    last = episode.queries.shape[1] - 1
    for query, at, targets, counted in zip(
        episode.queries, episode.at, episode.targets, episode.counted, strict=True
    ):
        assert (query[(at + 1).clamp_max(last)] == targets)[counted].all()


@pytest.mark.parametrize("targets", ["fast_weights", "all"])
def test_copies_adapted_together_are_as_if_adapted_alone(tiny, episode, targets):
    config = INNER.updated(fast_weights={"targets": targets})
    tiny = tiny.double()
    together = nested.adapt_copies(tiny, episode.ids, config)
    for row, ids in enumerate(episode.ids):
        fast = tiny.new_fast_weights(
            config.fast_weights.targets, config.fast_weights.rank, config.seed
        )
        batching.run(adapt(Rows(tiny, ids[None], fast), fast, config))
        alone = fast.detach()
        for name in alone:
            torch.testing.assert_close(together[name][row], alone[name][0], rtol=1e-7, atol=1e-9)


def test_a_refine_step_moves_every_copy_on_its_own(tiny, episode):
    config = INNER.updated(objective="refine", rollouts={"per_position": 4})
    adapted = nested.adapt_copies(tiny, episode.ids, config)
    written = adapted["model.layers.2.attn.o_proj.lora_b"]
    assert adapted.requests == 3
    assert adapted.is_finite()
    assert not torch.equal(written[0], written[1])


def test_spans_are_refused(tiny, episode):
    with pytest.raises(ValueError, match="not on spans"):
        nested.adapt_copies(tiny, episode.ids, INNER.updated(on={"kind": "spans"}))


def test_a_copied_parameter_hands_its_gradient_to_the_base(tiny):
    name = "model.layers.0.attn.o_proj.weight"
    tiny.requires_grad_(True)
    base = tiny.get_parameter(name)
    own = torch.stack([base.detach() + 1, base.detach() - 1])
    fast = nested.through_base(tiny, FastWeights({name: own}))
    torch.testing.assert_close(fast[name], own)
    (fast[name] * torch.tensor([2.0, 3.0])[:, None, None]).sum().backward()
    assert (base.grad == 5).all()


def test_teacher_forced_exact_match_is_that_of_greedy_answers(tiny):
    rng = random.Random("greedy")
    document = corpus.make_document(rng, corpus.make_facts(rng, 6), 70)
    questions = corpus.make_questions(rng, document.facts, 6)
    encode = tiny.tokenizer.backend_tokenizer.encode
    asked = [encode(corpus.BETWEEN + q.query + corpus.AFTER).ids for q in questions]
    answers = [encode(f" {q.answer}{corpus.EOS}").ids for q in questions]
    ids = torch.tensor([encode(document.text).ids])
    made = nested.Episode(ids, *nested.encode_queries(asked, answers))
    _, right = nested.ask(tiny, made, tiny(ids).state.repeat(6), BASE)
    greedy = evaluate.greedy_answers(tiny, document.text, [q.query for q in questions])
    assert right.tolist() == [a == q.answer for a, q in zip(greedy, questions, strict=True)]
    _, recalled = nested.ask(tiny, made, None, BASE)
    assert not recalled.any()


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    trainer = nested.Trainer(SMALL, load("tiny"), tmp_path_factory.mktemp("run"))
    losses = []
    trainer.run(lambda p: losses.append(p.figures["memory_loss"]))
    return trainer, losses


def test_a_few_steps_make_the_model_remember_more(uninterrupted):
    _, losses = uninterrupted
    assert losses[-1] < losses[0]


def test_a_resumed_run_ends_in_the_same_weights(uninterrupted, tmp_path):
    nested.Trainer(SMALL, load("tiny"), tmp_path).run(until=2)
    resumed = nested.Trainer(SMALL, load("tiny"), tmp_path, resume=True)
    assert resumed.step == 2
    resumed.run()
    expected, _ = uninterrupted
    for name, weight in expected.weights.items():
        assert torch.equal(weight, resumed.weights[name]), name


def test_another_recipes_checkpoint_is_refused(tmp_path):
    nested.Trainer(SMALL, load("tiny"), tmp_path).save()
    other = replace(SMALL, adapt=INNER.updated(optimizer={"learning_rate": 0.5}))
    with pytest.raises(ValueError, match="another recipe"):
        nested.Trainer(other, load("tiny"), tmp_path, resume=True)


def test_scores_are_shares_of_right_answers_with_intervals(tiny):
    result = compare(tiny, INNER, tokens=70, facts=6, documents=3, questions=2, seed=1)
    assert result["n"] == 6
    assert result["memory"]["none"] == {"score": 0.0, "interval": [0.0, 0.0]}
    context = result["context"]
    assert context["none"]["score"] > 50
    low, high = context["none"]["interval"]
    assert low <= context["none"]["score"] <= high
    gap = context["refine"]["score"] - context["none"]["score"]
    assert context["refine - none"]["score"] == pytest.approx(gap, abs=0.11)


def test_next_token_adaptation_may_have_settings_of_its_own(tiny):
    asked = {"tokens": 70, "facts": 6, "documents": 2, "questions": 2, "seed": 1}
    still = INNER.updated(optimizer={"learning_rate": 1e-9})
    context = compare(tiny, INNER.updated(optimizer={"learning_rate": 1.0}), ntp=still, **asked)[
        "context"
    ]
    assert context["ntp"] == context["none"]
    assert context["refine"]["score"] < context["none"]["score"]


@pytest.mark.parametrize("stage", ["first", "many_facts"])
def test_the_command_writes_a_model_that_loads(tmp_path, monkeypatch, stage):
    monkeypatch.setitem(nested.RECIPES, stage, SMALL)
    asked = ["--stage", stage, "--steps", "1", "--documents", "1"]
    result = CliRunner().invoke(app, ["nested", "--out", str(tmp_path), *asked])
    assert result.exit_code == 0, result.output
    summary = json.loads(result.stdout.strip().splitlines()[-1])
    assert summary == json.loads((tmp_path / "training.json").read_text())
    assert load(tmp_path).num_parameters == load("tiny").num_parameters


def test_invalid_settings_are_refused_by_name(tmp_path):
    result = CliRunner().invoke(app, ["compare", "--adapt", '{"rank": 0}'])
    assert result.exit_code == 2
    assert "rank" in result.output


# -- the model in the package ---------------------------------------------------------------------


def test_the_shipped_model_is_small():
    assert sum(f.stat().st_size for f in tiny_nested().iterdir()) < 5e6


def test_the_shipped_model_remembers_what_it_was_adapted_on():
    model, asked = load("tiny-nested"), {"tokens": 112, "facts": 8, "documents": 8, "seed": 3}
    scores = compare(model, nested.BEST["memory"], **asked)["memory"]
    assert scores["none"]["score"] <= 10
    assert scores["ntp"]["score"] >= 60
    assert scores["refine"]["score"] >= 60


def test_training_json_records_what_was_measured():
    recorded = json.loads((tiny_nested() / "training.json").read_text())
    for stage, recipe in (
        (recorded, nested.MANY_FACTS),
        (recorded["started_from"], nested.Recipe()),
    ):
        # Settings that did not exist yet had what is now their default.
        adapt = AdaptConfig.model_validate(stage["recipe"]["adapt"]).model_dump()
        assert stage["recipe"] | {"adapt": adapt} == json.loads(json.dumps(run.recorded(recipe)))
    again = evaluate.exact_match(load("tiny-nested"), 250, 8, documents=5)
    assert abs(again - recorded["exact_match"]["250"]) <= 0.1
