"""What the server answers with, as types. Fields that a newer server adds are kept as well."""

from typing import Any, ClassVar, Literal

from pydantic import Field

from refine_server.clients.traces import DocumentTrace, EvalResult, RunTrace, StepTrace
from refine_server.clients.wire import Event, WireObject


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
    trace: StepTrace | None


class StepMade(Step):
    """A step of the adaptation was made, one of at most ``steps``."""

    steps: int
    seconds_left: float | None


class Cost(WireObject):
    """What a request costs, by the server's measurements, not counting the work of others."""

    read_seconds: float
    adapt_seconds: float
    decode_seconds: float
    total_seconds: float
    memory_bytes: int


class Accepted(Event):
    """The request is in the queue, at a place from 1 on; 0 where it waits for nothing."""

    name: ClassVar[str] = "request.accepted"
    id: str
    queue_position: int
    estimate: Cost | None
    seconds_left: float | None


class QueuePosition(Event):
    """The request has another place in the queue."""

    name: ClassVar[str] = "request.queued"
    queue_position: int
    seconds_left: float | None


class Progress(Event):
    """How far the request is, where nothing else was told for two seconds."""

    name: ClassVar[str] = "request.progress"
    phase: Literal["queued", "reading", "adapting", "judging", "answering"]
    seconds: float
    seconds_left: float | None


class Reading(Event):
    """So many of the document's tokens have been read."""

    name: ClassVar[str] = "document.reading"
    tokens_read: int
    document_tokens: int
    seconds_left: float | None


class AdaptationStarted(Event):
    """The steps of the adaptation begin, at most ``steps``."""

    name: ClassVar[str] = "adaptation.started"
    steps: int
    seconds_left: float | None


class BaseAnswer(Event):
    """The whole answer of the unadapted model, with ``compare_base``."""

    name: ClassVar[str] = "answer.base"
    text: str


class AnswerDelta(Event):
    """The next piece of the answer's text."""

    name: ClassVar[str] = "answer.delta"
    text: str


AnsweredBy = Literal["base", "adapted", "kept_base"]
"""Which weights answer; ``kept_base``: the base weights, although an adaptation was asked for."""


class AdaptationReport(WireObject):
    """What the adaptation of a request did."""

    objective: str
    steps: list[Step]
    accepted_step: int
    stopped: str | None
    first_ntp_loss: float | None
    final_ntp_loss: float | None
    held_out: list[EvalResult]
    fast_weight_bytes: int


class Usage(WireObject):
    """Token counts of a request."""

    document_tokens: int
    query_tokens: int
    completion_tokens: int
    rollout_tokens: int


class Timings(WireObject):
    """Wall-clock seconds of a request's phases, measured by the server.

    Queue, prefill, adapt, judge, decode and other together are the total.
    """

    queue_seconds: float
    prefill_seconds: float
    adapt_seconds: float
    judge_seconds: float
    decode_seconds: float
    other_seconds: float
    total_seconds: float
    time_to_first_token_seconds: float


class Citation(WireObject):
    """A part of the document that an answer was aimed at, in characters of the document."""

    start: int
    end: int
    text: str
    score: float | None
    page: int | None


class Quote(WireObject):
    """Words of an answer in the document, in characters of the document."""

    start: int
    end: int
    text: str
    page: int | None


class LeftOut(WireObject):
    """A part of the document that was not read, in characters."""

    start: int
    end: int


class Overflow(WireObject):
    """How a document that was too long to be read as a whole was shortened."""

    handled: Literal["truncate_middle", "passages"]
    sent_tokens: int
    read_tokens: int
    left_out: list[LeftOut]


class PromptCitation(Citation):
    """A part of the document that is evidence for a prompt, by the prompt's number."""

    prompt_index: int


class ChoiceQuote(Quote):
    """Words of a choice in the document, by the choice's index."""

    choice_index: int


class TttReport(WireObject):
    """The field ``ttt`` of a response of the OpenAI-compatible routes.

    OpenAI's client has it in ``model_extra``. In a stream, citations and quotes are in the chunk
    that ends a choice::

        told = TttReport.model_validate(completion.model_extra["ttt"])
    """

    adaptation: str | None
    answered_by: AnsweredBy
    kept_base_reason: str | None = None
    document_tokens: int
    overflow: Overflow | None
    citations: list[PromptCitation] = Field(default=[])
    quotes: list[ChoiceQuote] = Field(default=[])


class Answer(Event):
    """An answer with its adaptation and its cost; the last event of its stream."""

    name: ClassVar[str] = "answer.completed"
    id: str
    model: str
    answer: str
    base_answer: str | None
    finish_reason: str
    answered_by: AnsweredBy
    kept_base_reason: str | None
    adaptation: str | None
    context: Literal["document", "passages", "document+passages"]
    citations: list[Citation]
    quotes: list[Quote]
    base_quotes: list[Quote]
    overflow: Overflow | None
    adaptation_report: AdaptationReport | None
    trace: RunTrace | None
    usage: Usage
    timings: Timings


class DocumentPage(WireObject):
    """A page of a document, in characters of its text."""

    number: int
    start: int
    end: int
    has_text: bool


class Document(WireObject):
    """A document's text as the server read it; ``{"file_id": id}`` names it in requests."""

    id: str
    filename: str
    type: Literal["text", "markdown", "html", "docx", "pdf"]
    title: str | None
    uploaded_bytes: int
    characters: int
    text: str
    pages: list[DocumentPage]
    created_at: int
    expires_at: int


class Failure(WireObject):
    """Why an adaptation failed, with the fields of the server's errors."""

    message: str
    type: str
    param: str | None = None
    code: str


class Adaptation(WireObject):
    """A kept adaptation to a document, from its start on."""

    id: str
    model: str
    name: str | None
    pinned: bool
    status: Literal["queued", "adapting", "ready", "failed", "cancelled"]
    created_at: float
    expires_at: float | None
    ttl_seconds: float
    queue_position: int
    estimate: Cost | None
    seconds_left: float | None
    adapt: dict[str, Any]
    document_tokens: int | None
    overflow: Overflow | None
    steps: list[Step]
    accepted_step: int | None
    answered_by: AnsweredBy | None
    kept_base_reason: str | None
    stopped: str | None
    first_ntp_loss: float | None
    final_ntp_loss: float | None
    held_out: list[EvalResult]
    citations: list[Citation]
    bytes: int
    in_memory: bool
    stored: bool
    error: Failure | None


class Refusal(WireObject):
    """Why a request would be refused now, and the option that names the limit."""

    status: int
    code: str
    message: str
    option: str | None
    retry_after: int | None


class Estimate(WireObject):
    """What a request would cost, and whether it would be admitted now.

    ``adaptation`` is the id of an equal one, which the request would join at no cost.
    """

    model: str
    document_tokens: int | None
    query_tokens: int | None
    estimate: Cost
    queue_position: int
    seconds_left: float | None
    admitted: bool
    refusal: Refusal | None
    adaptation: str | None


class UnknownEvent(Event):
    """An event that only a newer server sends. Its fields are in ``model_extra``."""

    name: ClassVar[str] = "unknown"


PROGRESS = (Accepted, QueuePosition, Progress, Reading, AdaptationStarted, StepMade, DocumentTrace)
"""What both streams tell of how far the work is."""
EVENTS: dict[str, type[Event]] = {
    event.name: event for event in (*PROGRESS, BaseAnswer, AnswerDelta, Answer)
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


class Model(WireObject):
    """A model that the server answers with."""

    id: str
    created: int
    family: str
    parameters: int
    fingerprint: str
    prompt_form: Literal["chat", "plain"]
    max_model_len: int
    context_length: int | None
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


class Version(WireObject):
    """The version of the server's software."""

    version: str
