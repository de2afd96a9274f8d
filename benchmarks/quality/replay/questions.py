"""A benchmark's questions, and what is stored of an answer."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from refine_server.benchmarks.common.traces import stored_history
from refine_server.clients.types import Answer


@dataclass(frozen=True)
class Question:
    """One question about one document, with its scorer."""

    task: str
    """Name of the task."""
    id: str
    """Id of the question within the task."""
    document: str
    query: str
    max_tokens: int
    score: Callable[[str], float]
    """Returns the score of an answer's text, 0 to 100."""
    kept: Mapping[str, Any] = field(default_factory=dict)
    """Fields that are added to the question's line in the predictions file."""


Key = tuple[str, str, str]
"""Task, id and objective."""


@dataclass(frozen=True)
class Result:
    """One answer under one objective. ``seconds`` is wall time at the client, with queueing."""

    task: str
    id: str
    objective: str
    score: float
    seconds: float
    adapted: bool
    guard: str | None
    timings: dict[str, float]
    usage: dict[str, int]
    steps: list[dict[str, Any]]
    truncated: bool = False
    """Whether the middle of the document was cut out, here or by the server."""
    accepted_step: int = 0
    """The step whose weights the answer uses; 0 for the base weights."""
    stopped: str | None = None
    """Why fewer steps than requested were made; None if all were."""
    held_out: list[dict[str, Any]] = field(default_factory=list)
    """Evaluations on the document's held-out spans, by step."""

    @property
    def key(self) -> Key:
        """What identifies this result in its run."""
        return self.task, self.id, self.objective

    @classmethod
    def of(cls, question: Question, objective: str, answer: Answer, seconds: float) -> "Result":
        """Make the result of an answer, without its text."""
        report = answer.adaptation_report
        return cls(
            task=question.task,
            id=question.id,
            objective=objective,
            score=question.score(answer.answer),
            seconds=seconds,
            adapted=answer.answered_by == "adapted",
            guard=answer.kept_base_reason,
            timings=answer.timings.model_dump(),
            usage=answer.usage.model_dump(),
            truncated=question.kept.get("truncated", False) or answer.overflow is not None,
            **stored_history(report),
        )

    @classmethod
    def parse(cls, line: Mapping[str, Any]) -> "Result":
        """Parse a line of a predictions file."""
        # Lines of earlier versions may have none of the fields that have a default.
        optional = ("truncated", "accepted_step", "stopped", "held_out")
        fields = [n for n in cls.__dataclass_fields__ if n not in optional or n in line]
        return cls(**{name: line[name] for name in fields})

    def line(self, question: Question, prediction: str) -> dict[str, Any]:
        """Return the line of a predictions file, which ``longbench-score`` can read, too."""
        return {"dataset": self.task, "prediction": prediction, **question.kept, **asdict(self)}
