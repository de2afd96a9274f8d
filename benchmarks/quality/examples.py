"""Number of right answers to questions about the example documents, by objective.

Three documents with thirty questions show that a setting works at all and what it costs; they are
too few to rank settings that are close.
"""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from refine_server.benchmarks.common.rows import DataError
from refine_server.ttt.document import AdaptedDocument
from refine_server.ttt.interface.config import AdaptConfig, SamplingConfig
from refine_server.ttt.interface.events import AnswerCompleted, DocumentAdapted
from refine_server.ttt.interface.requests import AdaptRequest, AskRequest
from refine_server.ttt.models import load
from refine_server.ttt.programs.start import perform

OBJECTIVES = ("none", "ntp", "refine")


class ExamplesBench:
    """Adapts to each example once for each objective, then asks all of its questions.

    Args:
        model: name of the model to load.
        directory: directory of files like those in ``examples/``.
        config: adaptation settings; the objective is replaced by each of ``OBJECTIVES``.
    """

    def __init__(self, model: str, directory: Path, config: AdaptConfig) -> None:
        self.model = load(model)
        self.sampling = SamplingConfig(max_tokens=32)
        self.config = config
        self.files = examples_for(directory, model)

    def run(self) -> dict[str, Any]:
        """Return right answers by objective, and the seconds of every adaptation (one run each)."""
        right = dict.fromkeys(OBJECTIVES, 0)
        seconds: dict[str, list[float]] = {name: [] for name in OBJECTIVES}
        asked = 0
        for file in self.files:
            example = json.loads(file.read_text())
            document = (file.parent / example["document"]).read_text()
            asked += len(example["questions"])
            for objective in OBJECTIVES:
                config = self.config.updated(objective=objective)
                began = time.perf_counter()
                adapted = self._adapt(document, config)
                seconds[objective].append(round(time.perf_counter() - began, 2))
                right[objective] += sum(self._answers(adapted, example["questions"]))
        return {
            "model": self.model.name,
            "config": self.config.model_dump(exclude={"objective"}),
            "threads": torch.get_num_threads(),
            "documents": [file.stem for file in self.files],
            "questions": asked,
            "right": right,
            "seconds": seconds,
        }

    def _adapt(self, document: str, config: AdaptConfig) -> AdaptedDocument:
        *_, last = perform(self.model, AdaptRequest(document, config))
        assert isinstance(last, DocumentAdapted)
        assert isinstance(last.document, AdaptedDocument)
        return last.document

    def _answers(self, adapted: AdaptedDocument, questions: list[dict[str, Any]]) -> Iterator[bool]:
        for question in questions:
            *_, last = perform(self.model, AskRequest(adapted, question["query"], self.sampling))
            assert isinstance(last, AnswerCompleted)
            yield any(_plain(answer) in _plain(last.answer) for answer in question["answers"])


def examples_for(directory: Path, model: str) -> list[Path]:
    """Return a model's example files: tiny has its own, because its vocabulary is small."""
    own = model == "tiny"
    files = [p for p in sorted(directory.glob("*.json")) if p.stem.startswith("tiny_") == own]
    if not files:
        raise DataError(f"--directory: {directory} has no examples for {model}")
    return files


def _plain(text: str) -> str:
    return " ".join(text.casefold().split())
