"""The events by which streams tell how far the work is: their names and their data."""

from pydantic import BaseModel, Field

from refine_server.server.engine.events import Accepted, Phase, Progress, QueueMoved, RunEvent
from refine_server.server.engine.scheduling.estimate import Estimate
from refine_server.ttt.interface.events import (
    AdaptationStarted,
    AdaptationStep,
    DocumentRead,
    DocumentReading,
    DocumentTraced,
)
from refine_server.ttt.interface.measures import Report
from refine_server.ttt.interface.reports import StepReport
from refine_server.ttt.interface.traces import DocumentTrace

LEFT = "Estimated seconds until the end, with what is waited for; null while nothing was measured."
POSITION = "Place in the queue, from 1 on; 0 where nothing has to be waited for."


class Cost(Report):
    """What a request costs by the server's own measurements, not counting the work of others."""

    read_seconds: float
    """Time to read the document."""
    adapt_seconds: float
    """Time to make all steps that are asked for, and to read the document under their weights."""
    decode_seconds: float
    """Time to decode the answer; 0 for an adaptation."""
    total_seconds: float
    """The sum of the three."""
    memory_bytes: int
    """Memory in bytes that the request takes at its peak, beside the model's weights, as
    predicted."""

    @classmethod
    def of(cls, estimate: Estimate) -> "Cost":
        """Return an estimate as clients see it."""
        return cls(
            read_seconds=_rounded(estimate.read),
            adapt_seconds=_rounded(estimate.adapt + estimate.reread),
            decode_seconds=_rounded(estimate.decode),
            total_seconds=_rounded(estimate.total),
            memory_bytes=estimate.memory_bytes,
        )


class RequestAccepted(BaseModel):
    """The request is in the queue (``request.accepted``); every stream begins with it."""

    id: str = Field(description="Id of the answer or the adaptation that is being made.")
    queue_position: int = Field(description=POSITION)
    estimate: Cost | None = Field(description="Null where nothing was measured.")
    seconds_left: float | None = Field(description=LEFT)


class QueuePosition(BaseModel):
    """The request has another place in the queue (``request.queued``)."""

    queue_position: int = Field(description=POSITION)
    seconds_left: float | None = Field(description=LEFT)


class RequestProgress(BaseModel):
    """How far the request is (``request.progress``), where two seconds passed without an event."""

    phase: Phase = Field(
        description="What is being done. Adapted weights are judged, and the document is read "
        "under them, between the last step and the answer."
    )
    seconds: float = Field(description="Time since the request was accepted.")
    seconds_left: float | None = Field(description=LEFT)


class ReadingProgress(BaseModel):
    """So much of the document has been read (``document.reading``)."""

    tokens_read: int
    document_tokens: int = Field(description="Tokens of what is read of the document.")
    seconds_left: float | None = Field(description=LEFT)


class AdaptationBegun(BaseModel):
    """The steps of the adaptation begin (``adaptation.started``)."""

    steps: int = Field(description="The most steps that are made.")
    seconds_left: float | None = Field(description=LEFT)


class StepProgress(StepReport):
    """A step of the adaptation was made (``adaptation.step``)."""

    steps: int
    """The most steps that are made."""
    seconds_left: float | None
    """Estimated seconds until the end, with what is waited for."""


PROGRESS_EVENTS: dict[str, type[BaseModel]] = {
    "request.accepted": RequestAccepted,
    "request.queued": QueuePosition,
    "request.progress": RequestProgress,
    "document.reading": ReadingProgress,
    "adaptation.started": AdaptationBegun,
    "adaptation.step": StepProgress,
    "document.trace": DocumentTrace,
}
"""The data of each event."""


def progress_event(
    event: RunEvent, *, id: str, steps: int, seconds_left: float | None
) -> tuple[str, BaseModel] | None:
    """Return an event's name and data; None for one that does not tell how far the work is.

    Args:
        event: of a run.
        id: what the run makes.
        steps: the most steps that its adaptation makes.
        seconds_left: estimated seconds until its end, now.
    """
    left = None if seconds_left is None else _rounded(seconds_left)
    match event:
        case Accepted(queue_position=position, estimate=estimate):
            cost = None if estimate is None else Cost.of(estimate)
            return "request.accepted", RequestAccepted(
                id=id, queue_position=position, estimate=cost, seconds_left=left
            )
        case QueueMoved(queue_position=position):
            return "request.queued", QueuePosition(queue_position=position, seconds_left=left)
        case Progress(phase=phase, seconds=seconds):
            return "request.progress", RequestProgress(
                phase=phase, seconds=_rounded(seconds), seconds_left=left
            )
        case DocumentReading(read, tokens):
            return "document.reading", ReadingProgress(
                tokens_read=read, document_tokens=tokens, seconds_left=left
            )
        case DocumentRead(document_tokens=tokens):
            return "document.reading", ReadingProgress(
                tokens_read=tokens, document_tokens=tokens, seconds_left=left
            )
        case AdaptationStarted():
            return "adaptation.started", AdaptationBegun(steps=event.steps, seconds_left=left)
        case DocumentTraced(trace):
            return "document.trace", trace
        case AdaptationStep(report):
            return "adaptation.step", StepProgress(**dict(report), steps=steps, seconds_left=left)
        case _:
            return None


def _rounded(seconds: float) -> float:
    """Round to what an estimate is worth."""
    return round(seconds, 2)
