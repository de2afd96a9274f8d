"""``bench regimes``: questions, prompts, stored results and the report."""

import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from refine_server.benchmarks.common.rows import DataError
from refine_server.benchmarks.quality.regimes.bench import AdaptationBench, ModelTokenizer, Result
from refine_server.benchmarks.quality.regimes.contexts import REGIMES, regimes_of, text_of
from refine_server.benchmarks.quality.regimes.items import (
    PROSE_TASKS,
    Item,
    Question,
    file_items,
    in_turns,
    prose_items,
    tiny_items,
)
from refine_server.benchmarks.quality.regimes.report import Summary
from refine_server.server.cli.main import app
from refine_server.ttt.interface.config import (
    AdaptConfig,
    OnQuerySpans,
    OptimizerConfig,
    RolloutConfig,
)
from refine_server.ttt.models import CausalLM, load
from refine_server.ttt.refine import loop
from refine_server.ttt.refine.inputs import spans


@pytest.fixture(scope="module")
def tiny() -> CausalLM:
    torch.set_num_threads(1)
    return load("tiny")


@pytest.fixture(scope="module")
def tokenizer(tiny) -> ModelTokenizer:
    return ModelTokenizer(tiny.tokenizer)


def question(query: str = "What is the harbour code?", answer: str = "amber") -> Question:
    return Question(query, 4, lambda prediction: 100.0 * (prediction.strip() == answer), query)


def contents(items) -> list[tuple]:
    return [(i.task, i.length, i.id, i.context, [q.query for q in i.questions]) for i in items]


def test_items_depend_on_the_seed_and_the_part_alone(tokenizer) -> None:
    for make in (
        lambda *a: tiny_items([200, 300], 2, *a),
        lambda *a: prose_items([600], 1, tokenizer, *a),
    ):
        first = contents(make(0, "dev"))
        assert first == contents(make(0, "dev"))
        contexts = {text for _, _, _, text, _ in first}
        for other in (make(0, "heldout"), make(1, "dev")):
            assert not contexts & {item.context for item in other}
    assert (
        contents(tiny_items([200], 1, 0, "dev"))
        == contents(tiny_items([200, 300], 1, 0, "dev"))[::2]
    )


def test_a_run_that_is_cut_short_has_measured_every_task() -> None:
    items = in_turns(tiny_items([160, 200], 2, 0, "dev"))
    assert [item.id for item in items] == ["0"] * 4 + ["1"] * 4
    assert len({(item.task, item.length) for item in items[:4]}) == 4


def test_needles_are_in_their_documents(tokenizer) -> None:
    items = list(prose_items([900], 1, tokenizer, 0, "dev"))
    assert [item.task for item in items] == list(PROSE_TASKS)
    for item in items:
        [asked] = item.questions
        assert asked.score(item.context) == 100.0
        assert asked.score("") == 0.0
        assert asked.max_tokens == 128  # as RULER allows
    for item in tiny_items([640], 2, 0, "heldout"):
        assert len(item.questions) == (1 if item.task == "niah_single" else 8)
        assert all(q.score("no such value") == 0.0 for q in item.questions)


def test_rows_of_files_are_split_by_their_ids(tmp_path) -> None:
    ruler = {"context": "Document 1:\nIt is in France.", "query": "Where?", "outputs": ["France"]}
    path = tmp_path / "squadqa.jsonl"
    path.write_text("".join(json.dumps({"index": i, **ruler}) + "\n" for i in range(40)))
    dev, heldout = ([i.id for i in file_items(path, 99, part)] for part in ("dev", "heldout"))
    assert len(dev) + len(heldout) == 40
    assert not set(dev) & set(heldout)
    assert min(len(dev), len(heldout)) > 5
    assert [i.id for i in file_items(path, 3, "dev")] == dev[:3]
    [asked] = next(file_items(path, 1, "dev")).questions
    assert asked.score("In France, of course.") == 100.0
    assert (asked.about, asked.query[:10]) == ("Where?", "Answer the")

    row = {"_id": "a1", "dataset": "qasper", "context": "It is so.", "input": "Is it?"}
    row |= {"answers": ["Yes"], "all_classes": None, "length": 3}
    longbench = tmp_path / "qasper.jsonl"
    longbench.write_text(json.dumps(row) + "\n")
    part, other = ("dev", "heldout") if _has(longbench, "dev") else ("heldout", "dev")
    [item] = file_items(longbench, 9, part)
    assert (item.task, item.context) == ("qasper", "It is so.")
    assert item.questions[0].score("Yes") == 100.0
    assert item.questions[0].about == "Is it?"
    with pytest.raises(DataError, match=f"no rows of the part {other}"):
        list(file_items(longbench, 9, other))


def _has(path: Path, part: str) -> bool:
    try:
        return bool(list(file_items(path, 9, part)))
    except DataError:
        return False


def test_every_regime_has_its_prompt(tokenizer) -> None:
    filler = "The old man walked along the path. It rained until late. "
    context = filler * 20 + "The harbour code is amber. " + filler * 30
    item = Item("t", 0, "1", "Read this.\n", context, (question(),))
    texts = {r: text_of(item, item.questions[0], r, 200, tokenizer) for r in REGIMES}
    assert texts["context"] == item.before + context
    assert texts["memory"] is None
    for regime in ("truncated", "passages"):
        assert texts[regime].startswith(item.before)
        assert 100 < len(tokenizer.encode(texts[regime])) <= 200
    assert "amber" in texts["passages"]
    assert "amber" not in texts["truncated"]
    assert texts["truncated"].rstrip().endswith("It rained until late.")
    assert regimes_of(["memory", "context"]) == ["context", "memory"]
    with pytest.raises(DataError, match="'all'"):
        regimes_of(["all"])


def test_a_run_goes_on_where_it_was_interrupted(tiny, tmp_path) -> None:
    config = AdaptConfig(rollouts=RolloutConfig(positions=2), optimizer=OptimizerConfig(steps=1))
    bench = AdaptationBench(tiny, config, ("context", "memory", "passages"), 128)
    items = list(tiny_items([200], 1, 0, "dev"))
    path = tmp_path / "out" / "results.jsonl"
    whole = list(bench.run(items, path, resume=False))
    assert [r.objective for r in whole] == ["none", "ntp", "refine"] * len(items)
    assert all(set(r.scores) == {"context", "memory", "passages"} for r in whole)
    assert all(r.peak_bytes > 2**20 and r.adapt_seconds >= 0 for r in whole)

    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:-1]))
    again = list(bench.run(items, path, resume=True))
    assert again[:-1] == whole[:-1]
    assert (again[-1].key, again[-1].scores) == (whole[-1].key, whole[-1].scores)
    assert len(path.read_text().splitlines()) == len(whole)


def test_the_memory_regime_sees_nothing_but_the_weights(tiny) -> None:
    """Without adaptation, answers from memory are equal; in context they use the document."""
    bench = AdaptationBench(tiny, AdaptConfig(), ("context", "memory"), 128)
    asked = question()
    answers = {}
    for value in ("amber", "coral"):
        text = f"The harbour code is {value}. It rained until late. The dogs barked at the moon."
        item = Item("t", 0, value, "", text, (asked,))
        adapted = bench._adapt(item, "none")
        answers[value] = [bench._answer(adapted, item, asked, r) for r in ("context", "memory")]
    assert [a[0].strip() for a in answers.values()] == ["amber", "coral"]
    assert answers["amber"][1] == answers["coral"][1]


def test_spans_of_a_question_are_adapted_to_for_that_question(tiny) -> None:
    settings = AdaptConfig(
        on=OnQuerySpans(learn_as="answer"),
        rollouts=RolloutConfig(positions=1),
        optimizer=OptimizerConfig(steps=1),
    )
    bench = AdaptationBench(tiny, settings, ("context",), 128)
    [item] = [i for i in tiny_items([160], 1, 0, "dev") if i.task == "niah_multikey"]
    asked = []
    adapt = bench._adapt
    bench._adapt = lambda item, objective, question: (
        asked.append(question) or adapt(item, objective, question)
    )
    bench.measure(item, "refine")
    assert asked == list(item.questions)
    assert len({question.query for question in asked}) > 1


def test_an_instruction_is_neither_learned_nor_chosen(tiny, monkeypatch) -> None:
    """Neither the document's instruction nor its repetition in the query affects the spans."""
    before, repeated = "The harbour code, the harbour code! ", "Name the garden. The garden! "
    filler = "The old man walked along the path. It rained until late. "
    context = filler * 5 + "The harbour code is amber. The garden is old. " + filler * 5
    about = "What is the harbour code?"
    asked = Question(repeated + about, 4, lambda prediction: 0.0, about)
    item = Item("t", 0, "1", before, context, (asked,))
    settings = AdaptConfig(
        on=OnQuerySpans(learn_as="answer", tokens=10),
        rollouts=RolloutConfig(positions=1),
        optimizer=OptimizerConfig(steps=1),
    )
    bench = AdaptationBench(tiny, settings, ("context",), 128)
    learned = []
    original = spans.answer_rows

    def answer_rows(*arguments):
        rows = original(*arguments)
        learned.append(tiny.tokenizer.decode(rows.input_ids[0].tolist()))
        return rows

    monkeypatch.setattr(loop, "answer_rows", answer_rows)
    bench.measure(item, "ntp")
    [row] = learned
    assert row.count("harbour code is amber") == 1


def results() -> list[Result]:
    def one(number: int, objective: str, context: float, memory: float) -> Result:
        scores = {"context": context, "memory": memory}
        seconds = {"context": 0.5, "memory": 0.25}
        kept = 0 if objective == "ntp" else 3
        return Result(
            "niah_single", 512, str(number), objective, 500, scores, 2.0, seconds, 2**30, kept, None
        )

    return [
        one(n, objective, context, memory)
        for n in range(4)
        for objective, context, memory in (
            ("none", 50.0, 0.0),
            ("ntp", 50.0, 0.0),
            ("refine", 75.0, 25.0 * n),
        )
    ]


def test_the_report_has_all_figures(tmp_path) -> None:
    summary = Summary(results(), ["context", "memory"])
    figures = summary.figures()
    assert figures["scores"] == {"none": 50.0, "ntp": 50.0, "refine": 75.0}
    assert figures["intervals"]["refine"] == [None, None]  # all equal
    assert figures["n"] == 4
    mean, low, high = figures["regimes"]["memory"]["refine"]
    assert low < mean == 37.5 < high
    assert figures["differences"]["context"]["refine-none"] == "25.0 (all equal)"
    assert figures["kept_base"] == {"ntp": 4, "refine": 0}
    text = summary.markdown("tiny, dev", "refine-server bench regimes", "Seed 0.")
    assert "| memory | niah_single | 512 | 4 | 0.0 (all equal) |" in text
    assert "| context | refine - none | 4 | 0 | 0 | 25.0 (all equal) |" in text
    assert "| ntp | 4 of 4 | 2.0 | 0.5 | 0.2 | 1024 |" in text
    summary.draw(tmp_path / "scores.png", "tiny")
    assert (tmp_path / "scores.png").read_bytes().startswith(b"\x89PNG")


def test_the_command(tmp_path, monkeypatch) -> None:
    import refine_server.benchmarks.quality.regimes.cli as cli

    monkeypatch.setattr(cli, "QUICK_LENGTHS", "160")
    monkeypatch.setattr(cli, "QUICK_DOCUMENTS", 1)
    arguments = ["regimes", "--quick", "--json", "--out", str(tmp_path)]
    settings = '{"optimizer": {"steps": 1}, "rollouts": {"positions": 2}}'
    arguments += ["--regimes", "context,memory", "--adapt", settings]
    ran = CliRunner().invoke(app, ["bench", *arguments], catch_exceptions=False)
    assert ran.exit_code == 0
    last = json.loads(ran.stdout.splitlines()[-1])
    assert set(last["scores"]) == set(last["intervals"]) == {"none", "ntp", "refine"}
    assert last["n"] == 2
    assert last["scores"]["none"] > 0
    made = {"results.jsonl", "settings.json", "report.md", "scores.png"}
    assert {p.name for p in tmp_path.iterdir()} == made


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [("--part", "test", "--part"), ("--regimes", "all", "--regimes"), ("--lengths", "x", "--len")],
)
def test_bad_options_are_named(tmp_path, option, value, message) -> None:
    ran = CliRunner().invoke(app, ["bench", "regimes", option, value, "--out", str(tmp_path)])
    assert ran.exit_code == 2
    assert message in ran.output
