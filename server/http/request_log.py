"""What the log says of one request: collected on its way, and written as one line at its end."""

from collections.abc import AsyncIterator
from contextvars import ContextVar
from dataclasses import dataclass, field, fields
from typing import Any, Protocol

from starlette.types import Scope

from refine_server.server.engine.events import RunEvent
from refine_server.server.http.errors import as_api_error
from refine_server.ttt.interface.events import (
    AdaptationEnded,
    AnswerCompleted,
    CompletionEnded,
    DocumentRead,
    Last,
    PromptRead,
)

PROBES = ("/health/live", "/health/ready", "/metrics")
"""Endpoints that machines ask every few seconds; their requests are logged at level debug."""


TRACE_ID: ContextVar[str | None] = ContextVar("trace_id", default=None)
"""Id of the trace that what runs now belongs to, also in tasks that a request leaves behind."""


class RunningWork(Protocol):
    """Work whose events a response is made of."""

    @property
    def queue_seconds(self) -> float:
        """Seconds that it waited for its first turn; zero until then."""

    def __aiter__(self) -> AsyncIterator[RunEvent]:
        """Return its events."""


@dataclass(kw_only=True, slots=True)
class RequestLog:
    """Numbers and names of one request; never a text of it, and never a key."""

    model: str | None = None
    adaptation: str | None = None
    """Id of the kept adaptation that was made or asked."""
    document_tokens: int | None = None
    answer_tokens: int | None = None
    queue_seconds: float | None = None
    read_seconds: float | None = None
    adapt_seconds: float | None = None
    decode_seconds: float | None = None
    answered_by: str | None = None
    kept_base_reason: str | None = None
    trace_id: str | None = field(default_factory=TRACE_ID.get)
    """Id of the trace that the request belongs to; None where traces are off."""
    error: str | None = None
    """Code of the error that ended the work, also of one that a stream reports."""
    has_ended: bool = False
    """Whether the client has got everything but the end of the response."""
    hung_up: bool = False
    """Whether the client left, or stopped reading, before that."""

    @classmethod
    def of(cls, scope: Scope) -> "RequestLog":
        """Return the log of a request."""
        log: RequestLog = scope.setdefault("state", {}).setdefault("log", cls())
        return log

    def fields(self) -> dict[str, Any]:
        """Return what is known, by name; seconds are rounded to milliseconds."""
        flags = ("has_ended", "hung_up")
        known = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in flags}
        return {
            name: round(value, 3) if isinstance(value, float) else value
            for name, value in known.items()
            if value is not None
        }

    def describe(
        self,
        *,
        model: str,
        adaptation: str | None = None,
        answered_by: str | None = None,
        kept_base_reason: str | None = None,
    ) -> None:
        """Record what a route knows of the request before its work."""
        self.model, self.adaptation = model, adaptation
        self.answered_by, self.kept_base_reason = answered_by, kept_base_reason

    async def recorded(self, run: RunningWork) -> AsyncIterator[RunEvent]:
        """Yield the events of the request's work, and record what they tell."""
        try:
            async for event in run:
                self._add(event)
                if isinstance(event, Last):
                    self.has_ended = True
                yield event
        except Exception as error:
            self.error = as_api_error(error).body.error.code
            raise
        finally:
            self.queue_seconds = run.queue_seconds

    def _add(self, event: RunEvent) -> None:
        match event:
            case DocumentRead():
                self.document_tokens = (self.document_tokens or 0) + event.document_tokens
                self.read_seconds = (self.read_seconds or 0.0) + event.seconds
            case PromptRead():
                self.read_seconds = (self.read_seconds or 0.0) + event.seconds
            case AdaptationEnded():
                self.adapt_seconds = event.seconds
            case AnswerCompleted():
                self.document_tokens = event.usage.document_tokens
                self.answer_tokens = event.usage.completion_tokens
                self.decode_seconds = event.timings.decode_seconds
                self.answered_by = event.adaptation.answered_by
                self.kept_base_reason = event.adaptation.kept_base_reason
            case CompletionEnded():
                self.answer_tokens = event.completion_tokens
                self.decode_seconds = event.timings.decode_seconds
