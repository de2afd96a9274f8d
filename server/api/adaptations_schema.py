"""The wire contract of adaptations."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from refine_server.server.adaptations.adaptation import Adaptation, Status
from refine_server.server.adaptations.label import Name
from refine_server.server.api.documents import Document
from refine_server.server.api.fields import (
    AnsweredByField,
    KeptBaseReason,
    OnDocumentOverflow,
    Priority,
    Text,
    Timeout,
)
from refine_server.server.api.stream_events import POSITION, PROGRESS_EVENTS, Cost
from refine_server.server.http.errors import ErrorDetail
from refine_server.server.settings import MAX_TTL_SECONDS
from refine_server.ttt.interface.config import AdaptConfig, DocumentAdaptConfig
from refine_server.ttt.interface.evidence import Evidence
from refine_server.ttt.interface.measures import EvalResult, Measured
from refine_server.ttt.interface.reports import (
    Citation,
    Overflow,
    StepReport,
)
from refine_server.ttt.interface.requests import AdaptRequest
from refine_server.ttt.interface.strict import StrictModel

MAX_QUERIES = 16
"""The most questions that an adaptation is aimed at."""


PINNED = (
    "Keep it until it is deleted: it does not expire, and does not give way to others in the "
    "store. It counts in all limits."
)


class AdaptationChanges(StrictModel):
    """What changes of an adaptation; a field that is left out stays as it is."""

    name: Name = Field("", description="A name to show; an empty one removes it.")
    pinned: bool = Field(False, description=PINNED)

    def label(self) -> dict[str, Any]:
        """Return the fields of the label that the request sets."""
        return self.model_dump(include={"name", "pinned"}, exclude_unset=True)


class AdaptationBody(StrictModel):
    """A document to adapt to and to keep for questions."""

    model_config = ConfigDict(title="AdaptationRequest")

    document: Document = Field(description="The text to adapt to, or a file that has it.")
    on_overflow: OnDocumentOverflow = "truncate_middle"
    adapt: DocumentAdaptConfig = DocumentAdaptConfig()
    queries: list[Text] = Field(
        default=[],
        max_length=MAX_QUERIES,
        description="Questions that are expected, which aim an adaptation on evidence.",
    )
    evidence: Evidence | None = Field(
        None,
        description="How evidence for the queries is found, where `adapt.on.kind` is `evidence`; "
        "parts of the document that the client names (`spans`) need no query. Default: by words "
        "(`bm25`).",
    )
    ttl_seconds: float | None = Field(
        None,
        gt=0,
        le=MAX_TTL_SECONDS,
        description="Seconds to keep it after its last use. Default: the server's setting.",
    )
    name: Name = Field("", description="A name to show, for its owner alone.")
    pinned: bool = Field(False, description=PINNED)
    model: str | None = Field(None, description="Fail with 404 unless this model is served.")
    priority: Priority = 0
    timeout_seconds: Timeout = None

    def label(self) -> dict[str, Any]:
        """Return the fields of the label that the request sets."""
        return self.model_dump(include={"name", "pinned"}, exclude_unset=True)

    def to_work(self, text: str, owner: str, pages: tuple[int, ...] = ()) -> AdaptRequest:
        """Return the work on the text of the document and its pages, for an owner."""
        return AdaptRequest(
            text, self.adapt, owner, tuple(self.queries), self.evidence, self.on_overflow, pages
        )


EXAMPLES: dict[str, Any] = {
    "default": {
        "summary": "Adapt to a document and keep it for questions",
        "value": {
            "document": "The harbour master at Port Ellery is Ines Calloway. She keeps the keys.",
            "ttl_seconds": 3600,
        },
    },
    "evidence": {
        "summary": "Adapt queries on the evidence for questions that are expected",
        "description": "The document stays as the base model reads it. What is kept takes less "
        "than 1 MB, whatever the document's length.",
        "value": {
            "document": "The harbour master at Port Ellery is Ines Calloway. She keeps the keys.",
            "queries": ["Who is the harbour master?", "Who keeps the keys?"],
            "adapt": {"on": {"kind": "evidence"}, "optimizer": {"learning_rate": 3e-4}},
        },
    },
    "spans": {
        "summary": "Adapt on short spans of a long document instead of all of it",
        "description": "Spans chosen by a query are for `/v1/answers`, where the query is known.",
        "value": {
            "document": "The harbour master at Port Ellery is Ines Calloway. She keeps the keys.",
            "adapt": {
                "on": {"kind": "spans", "choose": "surprise", "tokens": 32},
                "rollouts": {"positions": 16},
                "optimizer": {"steps": 16},
            },
        },
    },
}
"""Requests that the OpenAPI document shows."""


class AdaptationResource(BaseModel):
    """An adaptation. When it is ready, its id is accepted as ``adaptation`` of ``/v1/answers`` and
    as ``model`` of the OpenAI-compatible routes."""

    id: str
    object: Literal["adaptation"] = "adaptation"
    model: str
    name: str | None = Field(description="As its owner named it.")
    pinned: bool = Field(description="Whether it is kept until it is deleted.")
    status: Status
    created_at: float = Field(description="Seconds since 1970.")
    expires_at: float | None = Field(
        description="Unix time in seconds; each use extends it. Null until it is ready, and "
        "if it is pinned."
    )
    ttl_seconds: float
    queue_position: int = Field(description=POSITION)
    estimate: Cost | None = Field(
        description="What its work was expected to cost; null if an earlier process made it."
    )
    seconds_left: float | None = Field(
        description="Estimated seconds until it has ended, with what is waited for."
    )
    adapt: AdaptConfig = Field(description="How it was asked to adapt, every field.")
    document_tokens: int | None = Field(description="Tokens of what is read of the document.")
    overflow: Overflow | None = Field(
        description="How the document was shortened because it was too long; null if it was not, "
        "and until it is read."
    )
    steps: list[StepReport]
    accepted_step: int | None = Field(description="0: answers come from the base weights.")
    answered_by: AnsweredByField | None = Field(description="Null until it is ready.")
    kept_base_reason: KeptBaseReason
    stopped: str | None = Field(description="Why fewer steps than requested were made.")
    first_ntp_loss: Measured | None
    final_ntp_loss: Measured | None
    held_out: list[EvalResult] = Field(description="Held-out evaluations, the base weights first.")
    citations: list[Citation] = Field(
        description="The evidence that it was aimed at, in the document's order; empty where it "
        "was aimed at none."
    )
    bytes: int = Field(description="Size in memory, in bytes, when it is loaded.")
    in_memory: bool
    stored: bool = Field(description="Whether it survives a restart of the server.")
    error: ErrorDetail | None = Field(description="The error, if it failed.")

    @classmethod
    def of(cls, adaptation: Adaptation, model: str) -> "AdaptationResource":
        """Return the resource as it is now."""
        report, error = adaptation.report, adaptation.error
        return cls(
            id=adaptation.id,
            model=model,
            name=adaptation.label.name or None,
            pinned=adaptation.label.pinned,
            status=adaptation.status,
            created_at=adaptation.created_at,
            expires_at=adaptation.expires_at,
            ttl_seconds=adaptation.ttl_seconds,
            queue_position=adaptation.queue_position,
            estimate=adaptation.estimate and Cost.of(adaptation.estimate),
            seconds_left=adaptation.seconds_left,
            adapt=adaptation.config,
            document_tokens=adaptation.document_tokens,
            overflow=adaptation.overflow,
            steps=adaptation.steps,
            accepted_step=report and report.accepted_step,
            answered_by=report and report.answered_by,
            kept_base_reason=report and report.kept_base_reason,
            stopped=report and report.stopped,
            first_ntp_loss=report and report.first_ntp_loss,
            final_ntp_loss=report and report.final_ntp_loss,
            held_out=list(report.held_out) if report else [],
            citations=list(adaptation.citations),
            bytes=adaptation.nbytes,
            in_memory=adaptation.document is not None,
            stored=adaptation.stored,
            error=error and error.body.error,
        )


ADAPTATION_EVENTS: dict[str, type[BaseModel]] = {
    **PROGRESS_EVENTS,
    "adaptation.ready": AdaptationResource,
    "adaptation.failed": AdaptationResource,
    "adaptation.cancelled": AdaptationResource,
}
"""The data of each event of an adaptation's stream."""


class AdaptationList(BaseModel):
    """Adaptations, the newest first."""

    object: Literal["list"] = "list"
    data: list[AdaptationResource]


class AdaptationDeleted(BaseModel):
    """Confirms a deletion. A running adaptation has been cancelled."""

    id: str
    object: Literal["adaptation.deleted"] = "adaptation.deleted"
    deleted: Literal[True] = True
