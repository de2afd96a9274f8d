"""Asks every question in every arm; a line for each answer, so that a run can be continued."""

import json
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from refine_server.benchmarks.common.rows import read_rows
from refine_server.benchmarks.common.traces import stored_history
from refine_server.benchmarks.quality.answers.arms import Arm
from refine_server.benchmarks.quality.regimes.items import Item, Question
from refine_server.ttt.decoding.prompts.prompt import PromptTemplate
from refine_server.ttt.evidence.chunks import Offsets
from refine_server.ttt.interface.errors import RequestError
from refine_server.ttt.interface.events import AnswerCompleted, DocumentRead
from refine_server.ttt.interface.requests import AnswerRequest, Limits
from refine_server.ttt.models import CausalLM
from refine_server.ttt.programs.start import perform
from refine_server.ttt.query_side.document_cache import DocumentCache

KEPT_BYTES = 2**30
"""Bytes of documents that are kept from one arm to the next."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Result:
    """One answer in one arm."""

    task: str
    length: int
    """Tokens that the document was made with; 0 where it is as published."""
    id: str
    """Of the document."""
    question: int
    """Its number among the document's questions."""
    arm: str
    score: float
    """0 to 100, by the task's own rule."""
    answer: str
    seconds: float
    """From the request to the whole answer, the reading of the document with it where that had been
    read for an earlier answer."""
    adapt_seconds: float
    tokens: int
    """Tokens of the document that were read."""
    accepted_step: int
    guard: str | None = None
    """Why the base weights answered although an adaptation was asked for."""
    stopped: str | None = None
    """Why fewer steps than requested were made; None if all were."""
    steps: list[dict[str, Any]] = field(default_factory=list)
    """Reports of the steps, with traces if they are asked for."""
    held_out: list[dict[str, Any]] = field(default_factory=list)
    """Evaluations on the document's held-out spans, by step."""

    @property
    def key(self) -> tuple[str, int, str, int, str]:
        """What distinguishes this result from all others of its run."""
        return self.task, self.length, self.id, self.question, self.arm

    @classmethod
    def parse(cls, row: Any) -> "Result":
        """Read a result from its line."""
        return cls(**row)


class AnswerBench:
    """Answers the questions of documents in several arms, one request at a time.

    A document is read once for all arms that read it as it is.
    """

    def __init__(self, model: CausalLM, arms: Sequence[Arm], traces: bool = False) -> None:
        self.model, self.arms, self.traces = model, arms, traces
        self.failures: list[str] = []
        """What was asked, and why it was refused, for each question of an arm without answer."""
        self.template = PromptTemplate(model.tokenizer)
        self._documents = DocumentCache(lambda: KEPT_BYTES, math.inf)
        self.reading_seconds: dict[tuple[str, int, str, int], float] = {}
        """By task, length, id and tokens of what was read."""

    def run(self, items: Sequence[Item], path: Path, *, resume: bool) -> Iterator[Result]:
        """Yield the results of all items; those of an interrupted run are not measured again.

        What is refused is recorded in ``failures``, and the run goes on.
        """
        resume = resume and path.exists()
        done = {r.key: r for r in read_rows(path, Result.parse)} if resume else {}
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a" if resume else "w", encoding="utf-8") as file:
            for item in items:
                for number in range(len(item.questions)):
                    for arm in self.arms:
                        key = item.task, item.length, item.id, number, arm.name
                        if key not in done:
                            try:
                                done[key] = self.measure(item, number, arm)
                            except RequestError as error:
                                self.failures.append(f"{' '.join(map(str, key))}: {error}")
                                continue
                            file.write(json.dumps(asdict(done[key])) + "\n")
                            file.flush()
                        yield done[key]

    def measure(self, item: Item, number: int, arm: Arm) -> Result:
        """Answer one question in one arm."""
        question = item.questions[number]
        began = time.perf_counter()
        *events, last = perform(
            self.model,
            self._request(item, question, arm),
            template=self.template,
            documents=self._documents,
        )
        seconds = time.perf_counter() - began
        assert isinstance(last, AnswerCompleted)
        [read] = (event for event in events if isinstance(event, DocumentRead))
        text = item.task, item.length, item.id, read.document_tokens
        if read.is_cached:
            seconds += self.reading_seconds[text]
        self.reading_seconds.setdefault(text, read.seconds)
        return Result(
            task=item.task,
            length=item.length,
            id=item.id,
            question=number,
            arm=arm.name,
            score=question.score(last.answer),
            answer=last.answer,
            seconds=round(seconds, 3),
            adapt_seconds=round(last.timings.adapt_seconds, 3),
            tokens=last.usage.document_tokens,
            guard=last.adaptation.kept_base_reason,
            **stored_history(last.adaptation),
        )

    def _request(self, item: Item, question: Question, arm: Arm) -> AnswerRequest:
        request = arm.request(item, question, self._locate)
        if not self.traces or request.adapt.objective == "none":
            return request
        return replace(request, adapt=request.adapt.updated(trace=True))

    def _locate(self, text: str) -> Offsets:
        return self.template.locate_tokens(text, Limits().document_tokens)[1]
