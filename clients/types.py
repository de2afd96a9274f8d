"""What a server says, as typed objects. Fields that a newer server adds are kept, too."""

from typing import Any, ClassVar, Literal, TypedDict

from pydantic import BaseModel, ConfigDict


class _Said(BaseModel):
    model_config = ConfigDict(extra="allow", frozen=True)


class Event(_Said):
    """Something that a stream tells; ``name`` is its name there."""

    name: ClassVar[str]


class Step(Event):
    """One optimiser step: losses before it, in nats per token; a value may be unknown."""

    name: ClassVar[str] = "adaptation.step"
    step: int
    loss: float | None
    ntp_loss: float | None
    grpo_loss: float | None
    reward_mean: float | None
    reward_std: float | None
    entropy_mean: float | None
    kl: float | None
    grad_norm: float | None
    seconds: float


class BaseAnswer(Event):
    """With ``compare_base``: the unadapted model's whole answer."""

    name: ClassVar[str] = "answer.base"
    text: str


class AnswerDelta(Event):
    """A piece of the answer."""

    name: ClassVar[str] = "answer.delta"
    text: str


class HeldOut(_Said):
    """How the weights after a step (0: the base) did on the document's held-out spans."""

    step: int
    loss: float | None
    reward: float


class AdaptationReport(_Said):
    """How an adaptation went. ``accepted_step`` 0 means that the base weights answer."""

    id: str | None
    objective: str
    steps: list[Step]
    accepted_step: int
    guard: str | None
    stopped: str | None
    first_ntp_loss: float | None
    final_ntp_loss: float | None
    held_out: list[HeldOut]
    fast_weight_bytes: int


class Usage(_Said):
    """Token counts."""

    document_tokens: int
    query_tokens: int
    completion_tokens: int
    rollout_tokens: int


class Timings(_Said):
    """Wall-clock seconds, measured by the server."""

    queue_seconds: float
    prefill_seconds: float
    adapt_seconds: float
    decode_seconds: float
    time_to_first_token_seconds: float


class Answer(Event):
    """An answer, what the adaptation did, and what it cost; the last event of its stream."""

    name: ClassVar[str] = "answer.completed"
    id: str
    model: str
    answer: str
    base_answer: str | None
    finish_reason: str
    adapted: bool
    adaptation: AdaptationReport
    usage: Usage
    timings: Timings


class Failure(_Said):
    """Why something failed, in the words of the server's errors."""

    message: str
    type: str
    param: str | None = None
    code: str


class Adaptation(_Said):
    """A document that was, or is being, adapted to and is kept for questions.

    ``accepted_step`` 0 means that answers come from the base weights.
    """

    id: str
    model: str
    status: Literal["queued", "adapting", "ready", "failed", "cancelled"]
    created_at: float
    expires_at: float | None
    ttl_seconds: float
    config: dict[str, Any]
    document_tokens: int | None
    steps: list[Step]
    accepted_step: int | None
    guard: str | None
    stopped: str | None
    first_ntp_loss: float | None
    final_ntp_loss: float | None
    held_out: list[HeldOut]
    bytes: int
    in_memory: bool
    stored: bool
    error: Failure | None


class UnknownEvent(Event):
    """An event of a newer server. Its fields are in ``model_extra``."""

    name: ClassVar[str] = "unknown"


EVENTS: dict[str, type[Event]] = {
    event.name: event for event in (Step, BaseAnswer, AnswerDelta, Answer)
}


ENDINGS = ("adaptation.ready", "adaptation.failed", "adaptation.cancelled")
"""The last event of an adaptation's stream: its data is the whole ``Adaptation``."""


def event_of(name: str, data: dict[str, Any]) -> Event:
    """The typed form of an event of an answer's stream, and of an adaptation's before its end."""
    return EVENTS.get(name, UnknownEvent).model_validate(data)


def adaptations_of(said: dict[str, Any]) -> list[Adaptation]:
    """The adaptations of a list of them."""
    return [Adaptation.model_validate(adaptation) for adaptation in said["data"]]


class Model(_Said):
    """A model that can be asked."""

    id: str
    created: int
    family: str
    parameters: int
    fingerprint: str
    max_model_len: int
    parent: str | None = None


def models_of(said: dict[str, Any]) -> list[Model]:
    """The models of a list of them."""
    return [Model.model_validate(model) for model in said["data"]]


def adapt_defaults_of(openapi: dict[str, Any]) -> dict[str, Any]:
    """The defaults of ``adapt``, from the contract."""
    options = openapi["components"]["schemas"]["AdaptConfig"]["properties"]
    return {name: option.get("default") for name, option in options.items()}


class Version(_Said):
    """Which software answers."""

    version: str


class AdaptOptions(TypedDict, total=False):
    """How to adapt; whatever is left out keeps the server's default."""

    objective: Literal["refine", "ntp", "none"]
    prefix: Literal["full", "local"]
    ntp_on: Literal["document", "spans"] | None
    spans_as: Literal["text", "answer", "answer_in_context"]
    span_tokens: int
    steps: int
    chunks: int
    rollouts: int
    rollout_tokens: int
    rollout_temperature: float
    demonstration: bool
    selection: Literal["entropy", "surprise", "uniform", "argmax", "argmin", "query"]
    reward: Literal["exact", "cosine", "hybrid"]
    grpo_coef: float
    ntp_coef: float
    kl_coef: float
    clip_ratio: float
    optimizer: Literal["adamw", "sgd"]
    learning_rate: float
    max_grad_norm: float
    targets: Literal["fast_weights", "low_rank", "all"]
    rank: int
    max_seconds: float | None
    guard: Literal["held_out", "none"]
    seed: int


class AnswerOptions(TypedDict, total=False):
    """What a question may say: a ``document`` or an ``adaptation``'s id, and how to answer."""

    document: str | None
    adaptation: str | None
    adapt: AdaptOptions
    max_tokens: int | None
    temperature: float
    top_p: float
    stop: str | list[str]
    seed: int
    compare_base: bool
    model: str | None
    priority: int
    timeout_seconds: float | None


class AdaptationOptions(TypedDict, total=False):
    """How to adapt to a document that is to be kept, and for how long."""

    adapt: AdaptOptions
    ttl_seconds: float | None
    model: str | None
    priority: int
    timeout_seconds: float | None
