"""The objects of the HTTP contract as types. Fields that a newer server adds are kept as well."""

from typing import Any, ClassVar, Literal, Required, TypedDict

from pydantic import BaseModel, ConfigDict


class _WireObject(BaseModel):
    model_config = ConfigDict(extra="allow", frozen=True)


class Event(_WireObject):
    """Base class of the events of a stream."""

    name: ClassVar[str]
    """The type of the event in the stream."""


class Step(Event):
    """One optimizer step, with the losses before it in nats per token; None is unknown."""

    name: ClassVar[str] = "adaptation.step"
    step: int
    loss: float | None
    ntp_loss: float | None
    grpo_loss: float | None
    reward_mean: float | None
    reward_std: float | None
    entropy_mean: float | None
    kl: float | None
    attention: float | None
    grad_norm: float | None
    seconds: float
    rollout_tokens: int


class BaseAnswer(Event):
    """The whole answer of the unadapted model, with ``compare_base``."""

    name: ClassVar[str] = "answer.base"
    text: str


class AnswerDelta(Event):
    """The next piece of the answer's text."""

    name: ClassVar[str] = "answer.delta"
    text: str


class EvalResult(_WireObject):
    """The evaluation after a step (0: of the base weights) on the document's held-out spans."""

    step: int
    loss: float | None
    reward: float


class AdaptationReport(_WireObject):
    """What an adaptation did. With ``accepted_step`` 0 the base weights answer."""

    id: str | None
    objective: str
    steps: list[Step]
    accepted_step: int
    guard: str | None
    stopped: str | None
    first_ntp_loss: float | None
    final_ntp_loss: float | None
    held_out: list[EvalResult]
    fast_weight_bytes: int


class Usage(_WireObject):
    """Token counts of a request."""

    document_tokens: int
    query_tokens: int
    completion_tokens: int
    rollout_tokens: int


class Timings(_WireObject):
    """Wall-clock seconds of a request's phases, measured by the server."""

    queue_seconds: float
    prefill_seconds: float
    adapt_seconds: float
    decode_seconds: float
    time_to_first_token_seconds: float


class Citation(_WireObject):
    """A part of the document that an answer was aimed at, in characters of the document."""

    start: int
    end: int
    text: str
    score: float | None


class Quote(_WireObject):
    """Words of an answer in the document, in characters of the document."""

    start: int
    end: int
    text: str


class Answer(Event):
    """An answer with its adaptation and its cost; the last event of its stream."""

    name: ClassVar[str] = "answer.completed"
    id: str
    model: str
    answer: str
    base_answer: str | None
    finish_reason: str
    adapted: bool
    citations: list[Citation]
    quotes: list[Quote]
    adaptation: AdaptationReport
    usage: Usage
    timings: Timings


class Failure(_WireObject):
    """Why an adaptation failed, with the fields of the server's errors."""

    message: str
    type: str
    param: str | None = None
    code: str


class Adaptation(_WireObject):
    """A kept adaptation to a document, from its start on.

    With ``accepted_step`` 0 the base weights answer.
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
    held_out: list[EvalResult]
    bytes: int
    in_memory: bool
    stored: bool
    error: Failure | None


class UnknownEvent(Event):
    """An event that only a newer server sends. Its fields are in ``model_extra``."""

    name: ClassVar[str] = "unknown"


EVENTS: dict[str, type[Event]] = {
    event.name: event for event in (Step, BaseAnswer, AnswerDelta, Answer)
}


ENDINGS = ("adaptation.ready", "adaptation.failed", "adaptation.cancelled")
"""The events that end an adaptation's stream. Their data is the whole ``Adaptation``."""


def event_of(name: str, data: dict[str, Any]) -> Event:
    """Return the typed form of an event of an answer's stream."""
    return EVENTS.get(name, UnknownEvent).model_validate(data)


def adaptation_event_of(name: str, data: dict[str, Any]) -> Event | Adaptation:
    """Return the typed form of an event of an adaptation's stream."""
    return Adaptation.model_validate(data) if name in ENDINGS else event_of(name, data)


def adaptations_of(body: dict[str, Any]) -> list[Adaptation]:
    """Return the adaptations in the body of a list."""
    return [Adaptation.model_validate(adaptation) for adaptation in body["data"]]


class Model(_WireObject):
    """A model that the server answers with."""

    id: str
    created: int
    family: str
    parameters: int
    fingerprint: str
    prompt_form: Literal["chat", "plain"]
    max_model_len: int
    parent: str | None = None


def models_of(body: dict[str, Any]) -> list[Model]:
    """Return the models in the body of a list."""
    return [Model.model_validate(model) for model in body["data"]]


def adapt_defaults_of(openapi: dict[str, Any], on: str) -> dict[str, Any]:
    """Read the defaults of ``adapt``, and of ``on`` of one kind, from the OpenAPI document."""
    schemas = openapi["components"]["schemas"]

    def default(option: dict[str, Any]) -> Any:
        if "discriminator" in option:
            option = {"$ref": option["discriminator"]["mapping"][on]}
        if "$ref" not in option:
            return option.get("default")
        group = schemas[option["$ref"].rsplit("/", 1)[1]]
        return {name: default(field) for name, field in group["properties"].items()}

    return {name: default(o) for name, o in schemas["AdaptConfig"]["properties"].items()}


class Version(_WireObject):
    """The version of the server's software."""

    version: str


class OnDocumentOptions(TypedDict):
    """Adapt on the whole document."""

    kind: Literal["document"]


class OnSpansOptions(TypedDict, total=False):
    """Adapt on short spans of the document."""

    kind: Required[Literal["spans"]]
    tokens: int
    ntp_on: Literal["spans", "document"]
    choose: Literal["entropy", "surprise", "uniform", "argmax", "argmin"]


class OnQuerySpansOptions(TypedDict, total=False):
    """Adapt on the spans of the document that are most similar to the query."""

    kind: Required[Literal["query_spans"]]
    tokens: int
    ntp_on: Literal["spans", "document"]
    learn_as: Literal["text", "answer", "answer_in_context"]


class OnPromptOrEvidenceOptions(TypedDict):
    """Adapt on document and query, or on the evidence for the query over the document's state."""

    kind: Literal["prompt", "evidence"]


class RolloutOptions(TypedDict, total=False):
    """The rollouts of a step."""

    positions: int
    per_position: int
    tokens: int
    temperature: float
    select: Literal["entropy", "surprise", "uniform", "argmax", "argmin"]
    reward: Literal["exact", "cosine", "hybrid"]
    demonstration: bool


class LossOptions(TypedDict, total=False):
    """Coefficients of the loss."""

    ntp: float
    grpo: float
    kl: float
    attention: float


class OptimizerOptions(TypedDict, total=False):
    """How many steps, and how large."""

    steps: int
    learning_rate: float
    weight_decay: float
    max_grad_norm: float
    max_seconds: float | None


class FastWeightOptions(TypedDict, total=False):
    """The weights that the request owns and steps."""

    targets: Literal["fast_weights", "low_rank", "queries", "all"]
    rank: int


class _AdaptOptions(TypedDict, total=False):
    preset: Literal["paper"] | None
    objective: Literal["refine", "ntp", "attention", "none"]
    rollouts: RolloutOptions
    loss: LossOptions
    optimizer: OptimizerOptions
    fast_weights: FastWeightOptions
    guard: Literal["held_out", "none"]
    seed: int


class AdaptOptions(_AdaptOptions, total=False):
    """How to adapt; what is left out keeps the server's default."""

    on: OnDocumentOptions | OnSpansOptions | OnQuerySpansOptions | OnPromptOrEvidenceOptions


class DocumentAdaptOptions(_AdaptOptions, total=False):
    """How to adapt to a document whose queries are not known yet."""

    on: OnDocumentOptions | OnSpansOptions


class EvidenceByWordsOptions(TypedDict, total=False):
    """The chunks of a document that have most words in common with the query, or with another."""

    by: Required[Literal["bm25"]]
    query: str | None
    count: int
    tokens: int


class EvidenceByAttentionOptions(TypedDict, total=False):
    """The chunks of a document to which the question attends most."""

    by: Required[Literal["attention"]]
    count: int
    tokens: int


class EvidenceByUtilityOptions(TypedDict, total=False):
    """The chunks of a document behind which the model predicts the question best."""

    by: Required[Literal["utility"]]
    count: int
    tokens: int


class DocumentSpan(TypedDict):
    """A part of a document, in characters."""

    start: int
    end: int


class EvidenceSpansOptions(TypedDict):
    """Parts of the document that the client names."""

    by: Literal["spans"]
    spans: list[DocumentSpan]


class AnswerOptions(TypedDict, total=False):
    """Options of a question: a ``document`` or the id of an ``adaptation``, and how to answer."""

    document: str | None
    adaptation: str | None
    context: Literal["document", "passages", "document+passages"] | None
    evidence: (
        EvidenceByWordsOptions
        | EvidenceByAttentionOptions
        | EvidenceByUtilityOptions
        | EvidenceSpansOptions
        | None
    )
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
    """Options of a kept adaptation: how to adapt, and how long to keep the result."""

    adapt: DocumentAdaptOptions
    ttl_seconds: float | None
    model: str | None
    priority: int
    timeout_seconds: float | None
