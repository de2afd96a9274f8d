"""The wire contract of adaptations."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from refine_server.server.adaptations.adaptation import Adaptation, Status
from refine_server.server.api.answers_schema import (
    HeldOut,
    Number,
    Priority,
    Step,
    Timeout,
    holds_text,
)
from refine_server.server.http.errors import ErrorDetail
from refine_server.server.settings import MAX_TTL_SECONDS
from refine_server.ttt.interface.config import AdaptConfig
from refine_server.ttt.interface.requests import AdaptRequest


class AdaptationBody(BaseModel):
    """A document to adapt to and to keep for questions."""

    model_config = ConfigDict(extra="forbid", strict=True, title="AdaptationRequest")

    document: str = Field(min_length=1, description="The text to adapt to.")
    adapt: AdaptConfig = AdaptConfig()
    ttl_seconds: float | None = Field(
        None,
        gt=0,
        le=MAX_TTL_SECONDS,
        description="How long it is kept after its last use. Default: the server's.",
    )
    model: str | None = Field(None, description="The served model's id, to make sure of it.")
    priority: Priority = 0
    timeout_seconds: Timeout = None

    @field_validator("document")
    @classmethod
    def _holds_text(cls, value: str) -> str | None:
        return holds_text(value)

    def to_work(self, owner: str) -> AdaptRequest:
        """The work, for an owner."""
        return AdaptRequest(self.document, self.adapt, owner)


class AdaptationResource(BaseModel):
    """An adaptation. When it is ready, its id is accepted as ``adaptation`` and as ``model``."""

    id: str
    object: Literal["adaptation"] = "adaptation"
    model: str
    status: Status
    created_at: float = Field(description="Seconds since 1970.")
    expires_at: float | None = Field(description="Each use puts it off; null until it has ended.")
    ttl_seconds: float
    config: AdaptConfig
    document_tokens: int | None
    steps: list[Step]
    accepted_step: int | None = Field(description="0: answers come from the base weights.")
    guard: str | None = Field(description="Why the steps are not used; null when they are.")
    stopped: str | None = Field(description="Why fewer steps than asked were made.")
    first_ntp_loss: Number
    final_ntp_loss: Number
    held_out: list[HeldOut] = Field(description="What the guard judged by, the base first.")
    bytes: int = Field(description="Memory that it takes when it is in memory.")
    in_memory: bool
    stored: bool = Field(description="Whether it outlives the server's process.")
    error: ErrorDetail | None = Field(description="Why it failed.")

    @classmethod
    def of(cls, adaptation: Adaptation, model: str) -> "AdaptationResource":
        """The resource as it is now."""
        report, error = adaptation.report, adaptation.error
        return cls(
            id=adaptation.id,
            model=model,
            status=adaptation.status,
            created_at=adaptation.created_at,
            expires_at=adaptation.expires_at,
            ttl_seconds=adaptation.ttl_seconds,
            config=adaptation.config,
            document_tokens=adaptation.document_tokens,
            steps=[Step.model_validate(step) for step in adaptation.steps],
            accepted_step=report and report.accepted_step,
            guard=report and report.guard,
            stopped=report and report.stopped,
            first_ntp_loss=report and report.first_ntp_loss,
            final_ntp_loss=report and report.final_ntp_loss,
            held_out=[HeldOut.model_validate(j) for j in (report.held_out if report else ())],
            bytes=adaptation.nbytes,
            in_memory=adaptation.document is not None,
            stored=adaptation.stored,
            error=error and error.body.error,
        )


class AdaptationList(BaseModel):
    """Adaptations, the newest first."""

    object: Literal["list"] = "list"
    data: list[AdaptationResource]


class AdaptationDeleted(BaseModel):
    """What was deleted is gone; a running adaptation was cancelled."""

    id: str
    object: Literal["adaptation.deleted"] = "adaptation.deleted"
    deleted: Literal[True] = True
