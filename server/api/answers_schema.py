"""The wire contract of answers: what a request may say, and what comes back."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from refine_server.server.api.documents import Document
from refine_server.server.api.fields import (
    AnsweredByField,
    AnswerTokens,
    KeptBaseReason,
    Priority,
    StopStrings,
    Text,
    Timeout,
    answer_tokens,
)
from refine_server.server.api.response_format import (
    GuidedChoice,
    ResponseFormat,
    choice_forms,
    only_form,
    schema_forms,
)
from refine_server.server.api.stream_events import PROGRESS_EVENTS, progress_event
from refine_server.server.engine.events import RunEvent
from refine_server.ttt.interface.config import AdaptConfig, SamplingConfig, Temperature, TopP
from refine_server.ttt.interface.errors import RequestError
from refine_server.ttt.interface.events import (
    AnswerCompleted,
    AnswerDelta,
    BaseAnswered,
)
from refine_server.ttt.interface.evidence import ContextStrategy, Evidence, OnOverflow, ReadContext
from refine_server.ttt.interface.reports import (
    AdaptationHistory,
    Citation,
    Overflow,
    Quote,
    Timings,
    Usage,
)
from refine_server.ttt.interface.requests import (
    DEFAULT_ADAPTATION,
    DEFAULT_CONTEXT,
    DEFAULT_OVERFLOW,
    LOCAL,
    AnswerRequest,
    AskRequest,
    default_context,
)
from refine_server.ttt.interface.strict import StrictModel
from refine_server.ttt.interface.traces import RunTrace

if TYPE_CHECKING:  # it would import torch
    from refine_server.ttt.kept import Kept

DEFAULTS = SamplingConfig()


class AnswerBody(StrictModel):
    """A question about a document, with how to adapt to the document and how to decode."""

    model_config = ConfigDict(title="AnswerRequest")

    document: Document | None = Field(
        None, description="The text to answer from, or a file that has it."
    )
    adaptation: str | None = Field(
        None, description="Id of an adaptation to answer from, instead of a document."
    )
    query: Text = Field(description="The question to answer from the document.")
    context: ContextStrategy | None = Field(
        None,
        description="What the model reads before the query: the `document`, its `passages` (the "
        "evidence instead of the document), or `document+passages` (the evidence again between "
        "document and query). `best` answers in these three ways and gives the answer "
        "that the model finds likeliest behind the evidence alone. "
        f"Default: {DEFAULT_CONTEXT}, or the document where the model chooses the evidence.",
    )
    evidence: Evidence | None = Field(
        None,
        description="How evidence for the query is found in the document. Default: by words "
        "(`bm25`), where the context or the adaptation needs evidence.",
    )
    on_overflow: OnOverflow | None = Field(
        None,
        description="What is done with a document that is too long to be read as a whole, by the "
        "server's limit or because the model was trained for shorter sequences: `error` refuses "
        "it, `truncate_middle` cuts its middle out, `passages` reads the passages that fit the "
        f"query best. `overflow` of the response tells what was done. Default: {DEFAULT_OVERFLOW}.",
    )
    adapt: AdaptConfig = Field(
        DEFAULT_ADAPTATION,
        description="Settings of the adaptation. Without them the model is not adapted. Fields "
        "that are left out keep their defaults: `{}` adapts to the document with REFINE.",
    )
    max_tokens: Annotated[AnswerTokens, Field(ge=1)] | None = Field(
        None,
        description=f"Maximum length of the answer in tokens. Default: {DEFAULTS.max_tokens}, or "
        "the server's limit if that is lower.",
    )
    temperature: Temperature = DEFAULTS.temperature
    top_p: TopP = DEFAULTS.top_p
    stop: StopStrings = Field(default=[], description="Strings before which the answer ends.")
    response_format: ResponseFormat | None = None
    guided_choice: GuidedChoice | None = None
    seed: int = Field(DEFAULTS.seed, ge=0, lt=2**63, description="Random seed of sampling.")
    stream: bool = Field(False, description="Answer with server-sent events.")
    compare_base: bool = Field(False, description="Also answer from the base weights.")
    model: str | None = Field(None, description="Fail with 404 unless this model is served.")
    priority: Priority = 0
    timeout_seconds: Timeout = None

    def required_document(self) -> Document:
        """Return the document of the request's own; raise RequestError if there is none."""
        if self.document is None:
            message = "document: required, unless adaptation has the id of an adaptation"
            raise RequestError(message, "document", "invalid_value")
        return self.document

    def to_work(
        self,
        text: str,
        sampling: SamplingConfig,
        owner: str = LOCAL,
        pages: tuple[int, ...] = (),
    ) -> AnswerRequest:
        """Return the work on a document of the request's own, which has this text and pages."""
        return AnswerRequest(
            document=text,
            query=self.query,
            adapt=self.adapt,
            sampling=sampling,
            compare_base=self.compare_base,
            owner=owner,
            context=self.context or default_context(self.evidence),
            evidence=self.evidence,
            on_overflow=self.on_overflow or DEFAULT_OVERFLOW,
            pages=pages,
        )

    def to_question(self, kept: "Kept", sampling: SamplingConfig) -> AskRequest | AnswerRequest:
        """Return the work on a document that was adapted to before.

        Raises:
            RequestError: a field is there that needs a document of the request's own, or the
                document's text, which only an adaptation on evidence keeps.
        """
        self._refuse_beside_adaptation("document", "on_overflow", "adapt")
        if kept.kind == "document":
            self._refuse_beside_adaptation("evidence")
            if self.context != "document":
                self._refuse_beside_adaptation("context")
            return AskRequest(kept, self.query, sampling, kept.owner, self.compare_base)
        return AnswerRequest(
            document=kept.document,
            query=self.query,
            adapt=DEFAULT_ADAPTATION,
            sampling=sampling,
            compare_base=self.compare_base,
            owner=kept.owner,
            context=self.context or default_context(self.evidence),
            evidence=self.evidence,
            kept=kept,
            pages=kept.pages,
        )

    def _refuse_beside_adaptation(self, *names: str) -> None:
        for name in names:
            if name in self.model_fields_set and getattr(self, name) is not None:
                message = f"{name}: cannot be combined with an adaptation"
                if name in ("context", "evidence"):
                    message += " to the whole document, only with one on evidence"
                raise RequestError(message, name, "invalid_value")

    def sampling(self, longest: int) -> SamplingConfig:
        """Return how to decode; ``longest`` is the server's limit on ``max_tokens``.

        Raises:
            RequestError: more tokens are asked for than the server allows, or two forms.
        """
        return SamplingConfig(
            max_tokens=answer_tokens(self.max_tokens, DEFAULTS.max_tokens, longest),
            temperature=self.temperature,
            top_p=self.top_p,
            stop=tuple(self.stop),
            seed=self.seed,
            form=only_form(
                [*schema_forms(self.response_format), *choice_forms(self.guided_choice)]
            ),
        )


EXAMPLES: dict[str, Any] = {
    "default": {
        "summary": "Answer from a document, with its evidence repeated before the question",
        "description": "`citations` of the response are the evidence.",
        "value": {
            "document": "The harbour master at Port Ellery is Ines Calloway. She keeps the keys.",
            "query": "Who is the harbour master?",
            "evidence": {"by": "bm25", "count": 1, "tokens": 16},
        },
    },
    "query_spans": {
        "summary": "Adapt on the spans that the query asks about, learned as its answer",
        "description": "Fields of `adapt` that are left out keep their defaults.",
        "value": {
            "document": "The harbour master at Port Ellery is Ines Calloway. She keeps the keys.",
            "query": "Who is the harbour master?",
            "adapt": {
                "on": {"kind": "query_spans", "learn_as": "answer_in_context", "tokens": 30},
                "rollouts": {"positions": 4, "demonstration": True},
                "optimizer": {"learning_rate": 0.003},
                "guard": "none",
            },
        },
    },
}
"""Requests that the OpenAPI document shows."""


class AnswerTimings(Timings):
    """Wall-clock seconds of an answer, of which each phase includes turns of other requests.

    Queue, prefill, adapt, judge, decode and other together are the total."""

    queue_seconds: float
    """Tokenising, and the time in the queue until the request's first turn."""
    other_seconds: float
    """Everything else: waiting for the adaptation that is asked, finding evidence and quotes, and
    answering from the base weights."""
    total_seconds: float
    """Time from the arrival of the request to the end of the answer."""

    @classmethod
    def of(cls, timings: Timings, queue_seconds: float, total_seconds: float) -> "AnswerTimings":
        """Add what a program does not measure to the seconds of its phases."""
        known = queue_seconds + timings.prefill_seconds + timings.adapt_seconds
        known += timings.judge_seconds + timings.decode_seconds
        return cls(
            queue_seconds=queue_seconds,
            other_seconds=total_seconds - known,
            total_seconds=total_seconds,
            **dict(timings),
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Origin:
    """Where the events of an answer come from."""

    job_id: str
    model: str
    queue_seconds: float = 0.0
    """Seconds that the job waited for its first turn."""
    total_seconds: float = 0.0
    """Seconds since the request arrived."""
    steps: int = 0
    """The most steps that its adaptation makes."""
    seconds_left: float | None = None
    """Estimated seconds until its end; None while nothing was measured."""
    adaptation_id: str | None = None
    """The kept adaptation that answers, if one does."""

    @property
    def answer_id(self) -> str:
        """The id of the answer."""
        return f"answer-{self.job_id}"


class AnswerResponse(BaseModel):
    """An answer, what the adaptation did, and what it cost."""

    id: str
    object: Literal["answer"] = "answer"
    model: str
    answer: str
    base_answer: str | None = Field(description="With compare_base: the unadapted answer.")
    finish_reason: str
    answered_by: AnsweredByField
    kept_base_reason: KeptBaseReason
    adaptation: str | None = Field(
        description="Id of the kept adaptation that answers; null if there is none."
    )
    context: ReadContext = Field(description="What the model had read before the query.")
    citations: tuple[Citation, ...] = Field(
        description="The evidence that the answer was aimed at, in the document's order; empty "
        "where none was looked for."
    )
    quotes: tuple[Quote, ...] = Field(
        description="The answer's own words that the document has, where evidence was looked for."
    )
    base_quotes: tuple[Quote, ...] = Field(
        description="With compare_base: the base answer's own words that the document has."
    )
    overflow: Overflow | None = Field(
        description="How the document was shortened because it was too long; null if it was not."
    )
    adaptation_report: AdaptationHistory | None = Field(
        description="What the adaptation of this request did; null where it made none. "
        "`/v1/adaptations/{id}` has that of a kept adaptation."
    )
    trace: RunTrace | None = Field(
        description="The document as the model sees it before and after the adaptation; null "
        "unless `adapt.trace` asks for it. The steps of `adaptation_report` have theirs."
    )
    usage: Usage
    timings: AnswerTimings

    @classmethod
    def of(cls, done: AnswerCompleted, origin: Origin) -> "AnswerResponse":
        """Return the response to the request that ended with ``done``."""
        report = done.adaptation
        adapts = origin.adaptation_id is None and report.objective != "none"
        return cls(
            id=origin.answer_id,
            model=origin.model,
            answer=done.answer,
            base_answer=done.base_answer,
            finish_reason=done.finish_reason,
            answered_by=report.answered_by,
            kept_base_reason=report.kept_base_reason,
            adaptation=origin.adaptation_id,
            context=done.context,
            citations=done.citations,
            quotes=done.quotes,
            base_quotes=done.base_quotes,
            overflow=done.overflow,
            adaptation_report=report if adapts else None,
            trace=done.trace,
            usage=done.usage,
            timings=AnswerTimings.of(done.timings, origin.queue_seconds, origin.total_seconds),
        )


class AnswerText(BaseModel):
    """A piece of an answer (``answer.delta``), or the whole base answer (``answer.base``)."""

    text: str


ANSWER_EVENTS: dict[str, type[BaseModel]] = {
    **PROGRESS_EVENTS,
    "answer.base": AnswerText,
    "answer.delta": AnswerText,
    "answer.completed": AnswerResponse,
}
"""The data of each event of an answer's stream."""


def wire_event(event: RunEvent, origin: Origin) -> tuple[str, BaseModel] | None:
    """Return an event's name and data in a stream; None for an event that is not streamed."""
    match event:
        case BaseAnswered(text):
            return "answer.base", AnswerText(text=text)
        case AnswerDelta(text) if text:
            return "answer.delta", AnswerText(text=text)
        case AnswerCompleted():
            return "answer.completed", AnswerResponse.of(event, origin)
        case _:
            return progress_event(
                event,
                id=origin.answer_id,
                steps=origin.steps,
                seconds_left=origin.seconds_left,
            )
