"""Generated RULER samples: answers that are in the context, lengths, determinism, scores."""

import json
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from refine_server.benchmarks.common.rows import DataError, read_rows
from refine_server.benchmarks.quality.ruler.generate import TASKS, Sources, generate
from refine_server.benchmarks.quality.ruler.needles import NOISE
from refine_server.benchmarks.quality.ruler.replay import questions
from refine_server.benchmarks.quality.ruler.samples import Sample
from refine_server.server.cli.main import app

SHARED = Path(__file__).parents[4] / "shared" / "data" / "ruler" / "squadqa_4096.jsonl"


class Letters:
    """A tokenizer that counts four letters as a token."""

    def encode(self, text: str) -> list[int]:
        return [0] * -(-len(text) // 4)

    def decode(self, ids: list[int]) -> str:
        raise AssertionError("the generator only counts")


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Sources:
    folder = tmp_path_factory.mktemp("sources")
    (folder / "essay.txt").write_text("Why do we write? To think. One more line of an essay! " * 40)
    paragraphs = [
        {
            "context": f"Paragraph {name} tells of {name}. " * 5,
            "qas": [
                {"question": f"What of {name}?", "answers": [{"text": name}]},
                {"question": "Nothing?", "answers": [], "is_impossible": True},
            ],
        }
        for name in ("alpha", "beta", "gamma")
    ]
    squad = {"data": [{"paragraphs": paragraphs[:2]}, {"paragraphs": paragraphs[2:]}]}
    (folder / "squad.json").write_text(json.dumps(squad))
    hotpot = [
        {
            "question": f"Is it {i}?",
            "answer": f"yes {i}",
            "context": [[f"Title {i}", [f"It is {i}.", " Truly."]], ["Other", ["No."]]],
        }
        for i in range(200)
    ]
    (folder / "hotpot.json").write_text(json.dumps(hotpot))
    return Sources(folder / "essay.txt", folder / "squad.json", folder / "hotpot.json")


def make(task: str, sources: Sources, length: int = 2048, **options: Any) -> list[Sample]:
    arguments = {"samples": 2, "tokenizer": Letters(), "sources": sources, **options}
    return list(generate([task], [length], **arguments))


@pytest.mark.parametrize("task", TASKS)
def test_samples_fit_and_are_the_same_for_the_same_seed(task: str, sources: Sources) -> None:
    first, second = made = make(task, sources)
    assert made == make(task, sources)
    assert (first.index, second.index) == ("2048-0", "2048-1")
    assert first.prompt != second.prompt
    if not task.startswith("qa"):  # their questions come from the file
        assert make(task, sources, seed=1)[0].prompt != first.prompt
    for sample in made:
        assert sample.length <= 2048
        if task != "qa_1":  # the test's file has three paragraphs only
            assert sample.length > 0.85 * 2048
    assert make(task, sources, length=1024, samples=1)[0].length <= 1024


@pytest.mark.parametrize("task", TASKS)
def test_right_answers_score_100_and_wrong_ones_0(task: str, sources: Sources) -> None:
    for sample in make(task, sources):
        assert sample.score(f" {', '.join(sample.outputs).upper()}.\x00") == 100
        assert sample.score("") == 0


@pytest.mark.parametrize(
    ("task", "hidden", "asked"),
    [
        ("niah_single_1", 1, 1),
        ("niah_single_2", 1, 1),
        ("niah_single_3", 1, 1),
        ("niah_multikey_1", 4, 1),
        ("niah_multivalue", 4, 4),
        ("niah_multiquery", 4, 4),
        ("niah_multikey_2", 0, 1),
        ("niah_multikey_3", 0, 1),
    ],
)
def test_needles_say_what_is_asked(task: str, hidden: int, asked: int, sources: Sources) -> None:
    for sample in make(task, sources):
        needles = re.findall(r"One of the special magic \w+ for (\S+) is: (\S+)\.", sample.context)
        assert len(needles) == hidden if hidden else len(needles) > 20
        keys = {key for key, value in needles if value in sample.outputs}
        assert all(key in sample.after and key in sample.answer_prefix for key in keys)
        assert len(sample.outputs) == asked
        assert {value for key, value in needles if key in keys} == set(sample.outputs)
        assert ("A special magic" in sample.before) == (asked == 1)


def test_variables_lead_to_their_value(sources: Sources) -> None:
    for sample in make("vt", sources):
        value = re.search(r"assigned the value (\d+)", sample.after)
        assert value
        known: dict[str, str] = {}
        for name, source in re.findall(r"VAR (\w+) = (?:VAR )?(\w+)", sample.context):
            known[name] = known.get(source, source)  # only what was assigned before
        assert sorted(n for n, v in known.items() if v == value[1]) == sorted(sample.outputs)
        assert sample.context.count(NOISE) > 10
        assert sample.before.count("Answer: ") == 1  # the solved example


@pytest.mark.parametrize("length", [2048, 4096])
def test_common_words_are_the_most_frequent(length: int, sources: Sources) -> None:
    for sample in make("cwe", sources, length):
        counts = Counter(re.findall(r"\d+\. (.+?)(?= \d+\. |$)", sample.context))
        top, rest = counts.most_common(11)[:10], counts.most_common(11)[10]
        assert {word for word, _ in top} == set(sample.outputs)
        assert top[-1][1] == (6 if length < 4096 else 30)
        assert rest[1] == (1 if length < 4096 else 3)


def test_coded_words_are_the_most_frequent_after_noise(sources: Sources) -> None:
    for sample in make("fwe", sources):
        counts = Counter(sample.context.split()).most_common(5)
        assert [word for word, _ in counts[:4]] == ["...", *sample.outputs]
        assert counts[3][1] > counts[4][1]


def test_questions_come_with_their_documents(sources: Sources) -> None:
    for name, sample in zip(("alpha", "beta"), make("qa_1", sources), strict=True):
        assert sample.outputs == (name,)
        assert f"tells of {name}" in sample.context
        assert sample.context.count("Document ") == 3
    for number, sample in enumerate(make("qa_2", sources)):
        assert sample.outputs == (f"yes {number}",)
        assert f"Title {number}\nIt is {number}. Truly." in sample.context


def test_scores_count_the_share_of_outputs_or_any_output() -> None:
    sample = Sample("niah_multiquery", "0", "", "c", "q", "", ("12", "34", "56", "78"))
    assert sample.score("34 and 78") == 50
    assert replace(sample, task="qa_1").score("34 and 78") == 100


def test_missing_files_are_named(sources: Sources) -> None:
    with pytest.raises(DataError, match="need --essay: any long text"):
        make("niah_single_2", Sources())
    with pytest.raises(DataError, match="'niah' is not a RULER task"):
        make("niah", sources)
    with pytest.raises(DataError, match="200 tokens are too few for vt"):
        make("vt", sources, 200)
    with pytest.raises(DataError, match="qa_1 has only 3 questions"):
        make("qa_1", sources, samples=4)
    with pytest.raises(DataError, match="not in its data set's published form"):
        make("qa_2", replace(sources, hotpotqa=sources.squad))


def test_a_file_of_samples_is_read_as_it_was_written(tmp_path: Path, sources: Sources) -> None:
    tokenizer = Path(__file__).parents[3] / "ttt" / "models" / "bundled" / "tiny"
    file = tmp_path / "samples.jsonl"
    command = ["ruler-make", "--out", str(file), "--tokenizer", str(tokenizer), "--json"]
    options = ["--tasks", "niah_single_1,niah_multikey_2", "--lengths", "600,900", "--samples", "2"]
    completed = CliRunner().invoke(app, ["bench", *command, *options])
    assert completed.exit_code == 0, completed.output
    assert json.loads(completed.stdout.splitlines()[-1]) == {"samples": 8, "file": str(file)}
    samples = list(read_rows(file, Sample.parse))
    assert [sample.row() for sample in samples] == [
        {**json.loads(line), "outputs": tuple(json.loads(line)["outputs"])}
        for line in file.read_text().splitlines()
    ]
    (asked, *_) = questions(samples)
    assert f"{asked.document}\n{asked.query}" == samples[0].prompt


def test_bare_documents_and_questions_get_the_tasks_template() -> None:
    row = {"index": 9, "task": "qa_1", "context": "Document 1:\nA", "query": "B?", "outputs": ["A"]}
    sample = Sample.parse(row)
    assert sample.before.startswith("Answer the question based on the given documents.")
    assert sample.after.endswith("Question: B?")
    assert (sample.answer_prefix, sample.index) == (" Answer:", "9")
    with pytest.raises(ValueError, match="outputs: must be a list"):
        Sample.parse({**row, "outputs": "A"})


@pytest.mark.skipif(not SHARED.exists(), reason="needs a file of published samples")
def test_published_samples_are_read() -> None:
    for sample in read_rows(SHARED, Sample.parse):
        assert sample.score(sample.outputs[0]) == 100
