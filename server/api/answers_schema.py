"""The wire contract of answers: what a request may say, and what comes back."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator

from refine_server.server.http.errors import ApiError
from refine_server.ttt.interface.config import AdaptConfig, SamplingConfig
from refine_server.ttt.interface.errors import RequestError
from refine_server.ttt.interface.events import (
    AdaptationStep,
    AnswerCompleted,
    AnswerDelta,
    BaseAnswered,
    Event,
)
from refine_server.ttt.interface.reports import AdaptationReport
from refine_server.ttt.interface.requests import LOCAL, AnswerRequest, AskRequest

if TYPE_CHECKING:  # it would import torch
    from refine_server.ttt.document import AdaptedDocument

DEFAULTS = SamplingConfig()

StopString = Annotated[str, Field(min_length=1, max_length=256)]


def _listed(value: object) -> object:
    return [value] if isinstance(value, str) else value


StopStrings = Annotated[
    list[StopString],
    Field(max_length=16),
    BeforeValidator(_listed, json_schema_input_type=StopString | list[StopString]),
]


def require_model(asked: str | None, served: str) -> None:
    """404 when a request names a model that is not the served one."""
    if asked is not None and asked != served:
        message = f"This server does not serve the model {asked!r} but {served!r}."
        raise ApiError(404, message, "model_not_found", param="model")


def holds_text(value: str | None) -> str | None:
    """Refuse a text of nothing but white space."""
    if value is not None and not value.strip():
        raise ValueError("must contain more than white space")
    return value


Priority = Annotated[
    int, Field(ge=-10, le=10, description="Lower goes first and gets more of the time.")
]
Timeout = Annotated[
    float | None,
    Field(
        gt=0.0,
        le=86_400.0,
        description="Give up after so many seconds; the server's own limit holds as well.",
    ),
]


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


Number = Annotated[float | None, BeforeValidator(_finite)]
"""A measured value. NaN and infinity, which JSON does not have, are null."""


class AnswerBody(BaseModel):
    """A question about a document, with how to adapt to the document and how to decode."""

    model_config = ConfigDict(extra="forbid", strict=True, title="AnswerRequest")

    document: str | None = Field(None, min_length=1, description="The text to adapt to.")
    adaptation: str | None = Field(
        None, description="Instead of a document: the id of one that was adapted to before."
    )
    query: str = Field(min_length=1, description="The question to answer from it.")
    adapt: AdaptConfig = AdaptConfig()
    max_tokens: int | None = Field(
        None,
        ge=1,
        le=4096,
        description=f"Longest answer. Default: {DEFAULTS.max_tokens}, or the server's limit if "
        "that is lower.",
    )
    temperature: float = Field(
        DEFAULTS.temperature, ge=0.0, le=4.0, description="0 decodes greedily."
    )
    top_p: float = Field(DEFAULTS.top_p, gt=0.0, le=1.0)
    stop: StopStrings = Field(default=[], description="The answer ends before any of these.")
    seed: int = Field(DEFAULTS.seed, ge=0, lt=2**63, description="Of the sampled answer.")
    stream: bool = Field(False, description="Answer with server-sent events.")
    compare_base: bool = Field(False, description="Answer from the base weights as well.")
    model: str | None = Field(
        None, description="The served model's id, to make sure of it, or an adaptation's id."
    )
    priority: Priority = 0
    timeout_seconds: Timeout = None

    @field_validator("document", "query")
    @classmethod
    def _holds_text(cls, value: str | None) -> str | None:
        return holds_text(value)

    def to_work(self, longest: int, owner: str = LOCAL) -> AnswerRequest:
        """The work on a document of its own; raises RequestError when there is no document."""
        if self.document is None:
            message = "document: required, unless adaptation has the id of an adaptation"
            raise RequestError(message, "document", "invalid_value")
        sampling = self.sampling(longest)
        return AnswerRequest(
            self.document, self.query, self.adapt, sampling, self.compare_base, owner
        )

    def to_question(self, adapted: "AdaptedDocument", longest: int, owner: str) -> AskRequest:
        """The work on a document that was adapted to; RequestError for fields that do not fit."""
        for name in ("document", "adapt", "compare_base"):
            if name in self.model_fields_set:
                message = f"{name}: cannot be combined with an adaptation"
                raise RequestError(message, name, "invalid_value")
        return AskRequest(adapted, self.query, self.sampling(longest), owner)

    def sampling(self, longest: int) -> SamplingConfig:
        """How to decode; ``longest`` is the server's limit on ``max_tokens``."""
        asked = self.max_tokens or min(DEFAULTS.max_tokens, longest)
        return SamplingConfig(
            max_tokens=asked,
            temperature=self.temperature,
            top_p=self.top_p,
            stop=tuple(self.stop),
            seed=self.seed,
        )


class _Out(BaseModel):
    model_config = ConfigDict(from_attributes=True)


class Step(_Out):
    """One optimiser step: losses before it, in nats per token."""

    step: int
    loss: Number
    ntp_loss: Number
    grpo_loss: Number
    reward_mean: Number
    reward_std: Number
    entropy_mean: Number
    kl: Number
    grad_norm: Number
    seconds: float


class HeldOut(_Out):
    """How the weights after a step (0: the base weights) did on the document's held-out spans."""

    step: int
    loss: Number = Field(description="In place, in nats per token.")
    reward: float = Field(
        description="Share of their tokens, 0 to 1, that are repeated rightly behind a cue after "
        "the document."
    )


class Adaptation(_Out):
    """How the adaptation went. ``accepted_step`` 0 means the answer is the base weights'."""

    id: str | None = Field(description="Of an adaptation that is kept; null when it ended here.")
    objective: str
    steps: list[Step]
    accepted_step: int
    guard: str | None = Field(description="Why the steps are not used; null when they are.")
    stopped: str | None = Field(description="Why fewer steps than asked were made.")
    first_ntp_loss: Number
    final_ntp_loss: Number
    held_out: list[HeldOut] = Field(description="What the guard judged by, the base first.")
    fast_weight_bytes: int

    @classmethod
    def of(cls, report: AdaptationReport, adaptation_id: str | None) -> "Adaptation":
        """A report, under its id when the adaptation is kept."""
        values = {name: getattr(report, name) for name in cls.model_fields if name != "id"}
        return cls.model_validate({"id": adaptation_id, **values})


class Usage(_Out):
    """Token counts."""

    document_tokens: int
    query_tokens: int
    completion_tokens: int
    rollout_tokens: int


class Timings(_Out):
    """Wall-clock seconds; other requests take turns meanwhile.

    ``time_to_first_token_seconds`` counts from the end of queueing.
    """

    queue_seconds: float
    prefill_seconds: float
    adapt_seconds: float
    decode_seconds: float
    time_to_first_token_seconds: float


@dataclass(frozen=True)
class Origin:
    """Where events come from: the job, the model, and the adaptation if one was used again."""

    job_id: str
    model: str
    queue_seconds: float = 0.0
    adaptation_id: str | None = None


class AnswerResponse(_Out):
    """An answer, what the adaptation did, and what it cost."""

    id: str
    object: Literal["answer"] = "answer"
    model: str
    answer: str
    base_answer: str | None = Field(description="With compare_base: the unadapted answer.")
    finish_reason: str
    adapted: bool
    adaptation: Adaptation
    usage: Usage
    timings: Timings

    @classmethod
    def of(cls, done: AnswerCompleted, origin: Origin) -> "AnswerResponse":
        """The response to the request that ended with ``done``."""
        timings = {name: getattr(done.timings, name, None) for name in Timings.model_fields}
        return cls(
            id=f"answer-{origin.job_id}",
            model=origin.model,
            answer=done.answer,
            base_answer=done.base_answer,
            finish_reason=done.finish_reason,
            adapted=done.adaptation.adapted,
            adaptation=Adaptation.of(done.adaptation, origin.adaptation_id),
            usage=Usage.model_validate(done.usage),
            timings=Timings.model_validate({**timings, "queue_seconds": origin.queue_seconds}),
        )


class Text(_Out):
    """A piece of an answer (``answer.delta``), or the whole base answer (``answer.base``)."""

    text: str


def wire_event(event: Event, origin: Origin) -> tuple[str, BaseModel] | None:
    """An event's name and data in a stream; None for what a stream does not tell."""
    match event:
        case BaseAnswered(text):
            return "answer.base", Text(text=text)
        case AdaptationStep(report):
            return "adaptation.step", Step.model_validate(report)
        case AnswerDelta(text) if text:
            return "answer.delta", Text(text=text)
        case AnswerCompleted():
            return "answer.completed", AnswerResponse.of(event, origin)
        case _:
            return None


class Model(_Out):
    """A model that can be asked, in OpenAI's form with a few fields more."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: Literal["refine-server"] = "refine-server"
    family: str
    parameters: int
    fingerprint: str = Field(description="Hash of the base weights.")
    max_model_len: int = Field(description="The longest prompt, in tokens (as vLLM).")
    parent: str | None = Field(None, description="Of an adaptation: the model it is made from.")


class ModelList(_Out):
    """The models that can be asked."""

    object: Literal["list"] = "list"
    data: list[Model]


class Health(_Out):
    """What was asked for is true."""

    status: Literal["live", "ready", "intact"]


class Version(_Out):
    """Which software answers."""

    name: Literal["refine-server"] = "refine-server"
    version: str
