"""Question answering over many documents: SQuAD's paragraphs (qa_1), HotpotQA's (qa_2)."""

import json
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from refine_server.benchmarks.common.rows import DataError
from refine_server.benchmarks.quality.ruler.samples import Sample, around


@dataclass(frozen=True, kw_only=True, slots=True)
class DocumentQuestion:
    """A question over documents, which are given as indices into ``Documents.documents``."""

    query: str
    outputs: tuple[str, ...]
    """Accepted answers."""
    own: tuple[int, ...]
    """The documents that answer the question."""
    near: tuple[int, ...] = ()
    """Distractors from the same article."""


@dataclass(frozen=True)
class Documents:
    """Makes samples of the tasks qa_1 and qa_2; a haystack's size is its number of documents."""

    documents: tuple[str, ...]
    questions: tuple[DocumentQuestion, ...]

    @property
    def least(self) -> int:
        """The smallest possible haystack: the most documents that one question needs."""
        return max(len(question.own) for question in self.questions)

    def make(self, task: str, index: str, size: int, rng: random.Random) -> Sample:
        """Make the sample of the ``index``-th question: its documents, near ones, then others."""
        number = int(index.rpartition("-")[2])
        if number >= len(self.questions):
            raise DataError(f"--samples: {task} has only {len(self.questions)} questions")
        question = self.questions[number]
        free = min(size, len(self.documents)) - len(question.own)
        near = rng.sample(question.near, min(free, len(question.near)))
        taken = {*question.own, *question.near}
        others = [i for i in range(len(self.documents)) if i not in taken]
        far = rng.sample(others, min(free - len(near), len(others)))
        chosen = [*question.own, *near, *far]
        rng.shuffle(chosen)
        texts = (f"Document {n}:\n{self.documents[i]}" for n, i in enumerate(chosen, 1))
        return around(task, index, "\n\n".join(texts), question.outputs, query=question.query)


def read_squad(path: Path) -> Documents:
    """Read SQuAD 2.0's ``dev-v2.0.json``: paragraphs, and the questions that they answer."""
    return _read(path, _squad)


def read_hotpotqa(path: Path) -> Documents:
    """Read HotpotQA's ``hotpot_dev_distractor_v1.json``: ten paragraphs for each question."""
    return _read(path, _hotpotqa)


def _squad(data: Any) -> Documents:
    articles = [article["paragraphs"] for article in data["data"]]
    number = _numbered(p["context"] for article in articles for p in article)
    questions = []
    for article in articles:
        there = [number[p["context"]] for p in article]
        for paragraph in article:
            own = number[paragraph["context"]]
            near = tuple(dict.fromkeys(i for i in there if i != own))
            for qa in paragraph["qas"]:
                if not qa.get("is_impossible"):
                    outputs = tuple(answer["text"] for answer in qa["answers"])
                    query = qa["question"]
                    questions.append(
                        DocumentQuestion(query=query, outputs=outputs, own=(own,), near=near)
                    )
    return Documents(tuple(number), tuple(questions))


def _hotpotqa(data: Any) -> Documents:
    def text_of(paragraph: Any) -> str:
        return f"{paragraph[0]}\n{''.join(paragraph[1])}"

    number = _numbered(text_of(p) for row in data for p in row["context"])
    questions = [
        DocumentQuestion(
            query=row["question"],
            outputs=(row["answer"],),
            own=tuple(number[text_of(p)] for p in row["context"]),
        )
        for row in data
    ]
    return Documents(tuple(number), tuple(questions))


def _numbered(documents: Iterable[str]) -> dict[str, int]:
    return {document: i for i, document in enumerate(sorted(set(documents)))}


def _read(path: Path, parse: Callable[[Any], Documents]) -> Documents:
    try:
        found = parse(json.loads(path.read_text("utf-8-sig")))
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise DataError(f"{path} is not in its data set's published form: {error!r}") from None
    if not found.questions:
        raise DataError(f"{path} has no question with an answer")
    return found
