"""A benchmark's questions, and what is stored of an answer."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from refine_server.clients.types import Answer

CURVE_FIELDS = ("loss", "ntp_loss", "grpo_loss", "reward_mean", "seconds")


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

    @property
    def key(self) -> Key:
        """What identifies this result in its run."""
        return self.task, self.id, self.objective

    @classmethod
    def of(cls, question: Question, objective: str, answer: Answer, seconds: float) -> "Result":
        """Make the result of an answer, without its text."""
        report = answer.adaptation_report
        steps = [] if report is None else report.steps
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
            steps=[step.model_dump(include=set(CURVE_FIELDS)) for step in steps],
        )

    @classmethod
    def parse(cls, line: Mapping[str, Any]) -> "Result":
        """Parse a line of a predictions file."""
        fields = [name for name in cls.__dataclass_fields__ if name != "truncated"]
        truncated = line.get("truncated", False)  # lines of earlier versions may have none
        return cls(**{name: line[name] for name in fields}, truncated=truncated)

    def line(self, question: Question, prediction: str) -> dict[str, Any]:
        """Return the line of a predictions file, which ``longbench-score`` can read, too."""
        return {"dataset": self.task, "prediction": prediction, **question.kept, **asdict(self)}
