"""What a benchmark asks, and what it keeps of an answer."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from refine_server.clients.types import Answer

CURVE_FIELDS = ("loss", "ntp_loss", "grpo_loss", "reward_mean", "seconds")


@dataclass(frozen=True)
class Question:
    """One question about one document, with its own scorer.

    Attributes:
        task, id: together they name the question.
        score: of an answer's text, 0 to 100.
        kept: fields that its line in the predictions file carries beside the result's.
    """

    task: str
    id: str
    document: str
    query: str
    max_tokens: int
    score: Callable[[str], float]
    kept: Mapping[str, Any] = field(default_factory=dict)


Key = tuple[str, str, str]
"""Task, id and objective."""


@dataclass(frozen=True)
class Result:
    """One answer under one objective. ``seconds`` is the client's wall clock, queueing included."""

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

    @property
    def key(self) -> Key:
        """What tells this result from every other of its run."""
        return self.task, self.id, self.objective

    @classmethod
    def of(cls, question: Question, objective: str, answer: Answer, seconds: float) -> "Result":
        """What is kept of an answer, beside its text."""
        return cls(
            task=question.task,
            id=question.id,
            objective=objective,
            score=question.score(answer.answer),
            seconds=seconds,
            adapted=answer.adapted,
            guard=answer.adaptation.guard,
            timings=answer.timings.model_dump(),
            usage=answer.usage.model_dump(),
            steps=[step.model_dump(include=set(CURVE_FIELDS)) for step in answer.adaptation.steps],
        )

    @classmethod
    def parse(cls, line: Mapping[str, Any]) -> "Result":
        """A result from its line in a predictions file."""
        return cls(**{name: line[name] for name in cls.__dataclass_fields__})

    def line(self, question: Question, prediction: str) -> dict[str, Any]:
        """The line of a predictions file, which ``longbench-score`` reads as well."""
        return {"dataset": self.task, "prediction": prediction, **question.kept, **asdict(self)}
