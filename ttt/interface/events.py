"""Events of one piece of work, in the order in which they happen."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from refine_server.ttt.interface.evidence import ReadContext
from refine_server.ttt.interface.reports import (
    AdaptationReport,
    Citation,
    Overflow,
    Quote,
    StepReport,
    Timings,
    Usage,
)
from refine_server.ttt.interface.traces import DocumentTrace, RunTrace

if TYPE_CHECKING:  # it holds tensors, and these values must be had without importing torch
    from refine_server.ttt.kept import Kept


@dataclass(frozen=True)
class DocumentReading:
    """So many of the document's tokens have been read; the first one, of none, when it begins."""

    tokens_read: int
    document_tokens: int


@dataclass(frozen=True)
class DocumentRead:
    """The document was read, as far as no step changes it."""

    document_tokens: int
    seconds: float
    is_cached: bool = False
    """Whether it had been read for an earlier request of the owner."""
    overflow: Overflow | None = None
    """How it was shortened, if it was."""
    key: str | None = None
    """Tells the owner's documents apart that are kept as the base model reads them."""


@dataclass(frozen=True)
class AdaptationStarted:
    """The adaptation begins; of a document that is too short it makes no step."""

    steps: int
    """The most steps that are made."""


@dataclass(frozen=True)
class AdaptationStep:
    """One step of the adaptation ended."""

    report: StepReport


@dataclass(frozen=True)
class DocumentTraced:
    """``adapt.trace``: how the model sees the document now."""

    trace: DocumentTrace


@dataclass(frozen=True)
class BaseAnswered:
    """``compare_base``: what the unadapted model answers."""

    text: str


@dataclass(frozen=True)
class AdaptationEnded:
    """The loop is over; what follows is decoded from its result."""

    report: AdaptationReport
    seconds: float


@dataclass(frozen=True)
class AnswerDelta:
    """One more decoded token. ``text`` may be empty while a character is incomplete."""

    text: str


@dataclass(frozen=True)
class AnswerCompleted:
    """The whole answer. The last event of a question."""

    answer: str
    base_answer: str | None
    finish_reason: str
    adaptation: AdaptationReport
    usage: Usage
    timings: Timings
    citations: tuple[Citation, ...] = ()
    """The evidence that the answer was aimed at, in the document's order."""
    quotes: tuple[Quote, ...] = ()
    """The answer's own words that the document has, where evidence was looked for."""
    base_quotes: tuple[Quote, ...] = ()
    """The same of the base answer."""
    context: ReadContext = "document"
    """What was read before the query."""
    overflow: Overflow | None = None
    """How the document was shortened, if it was."""
    trace: RunTrace | None = None
    """The document before and after the adaptation, if a trace was asked for."""


@dataclass(frozen=True)
class DocumentAdapted:
    """The document is ready for questions. The last event of an adaptation."""

    document: "Kept"


@dataclass(frozen=True)
class ScoredToken:
    """A token as bytes, which need not be whole characters, and its log-probability in nats.

    ``log_prob`` is None where nothing was there to predict the token, or where it was not asked
    for. ``top`` holds the likeliest tokens in its place, best first.
    """

    data: bytes
    log_prob: float | None = None
    top: tuple["ScoredToken", ...] = ()

    @property
    def text(self) -> str:
        """The token as text; bytes that are no characters are spelled out, as OpenAI does."""
        try:
            return self.data.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in self.data)


@dataclass(frozen=True)
class PromptRead:
    """A prompt was read. ``echo`` holds its own tokens if they were asked for."""

    prompt: int
    tokens: int
    seconds: float
    echo: tuple[ScoredToken, ...]
    citations: tuple[Citation, ...] = ()
    """The evidence for the prompt in the document that it follows, in the document's order."""


@dataclass(frozen=True)
class CompletionDelta:
    """One more token of a choice: what it adds, and whether it is a token that ends answers.

    ``text`` may be empty while a character is incomplete or a stop string may have begun.
    """

    choice: int
    text: str
    token: ScoredToken
    ends: bool
    start: int
    """Characters of the choice's tokens before this one. The token is part of a stop string if the
    choice ends with no more text than that."""


@dataclass(frozen=True)
class ChoiceEnded:
    """A choice is complete: "stop" or "length"."""

    choice: int
    finish_reason: str
    quotes: tuple[Quote, ...] = ()
    """The choice's own words that the document has, where evidence was looked for."""


@dataclass(frozen=True)
class CompletionEnded:
    """All choices are complete. The last event of a completion."""

    prompt_tokens: int
    completion_tokens: int
    timings: Timings


Event = (
    DocumentReading
    | DocumentRead
    | AdaptationStarted
    | AdaptationStep
    | DocumentTraced
    | BaseAnswered
    | AdaptationEnded
    | AnswerDelta
    | AnswerCompleted
    | DocumentAdapted
    | PromptRead
    | CompletionDelta
    | ChoiceEnded
    | CompletionEnded
)


Last = AnswerCompleted | DocumentAdapted | CompletionEnded
"""One of these ends every piece of work."""

Emit = Callable[[Event], None]
"""Receives a program's events while it runs."""
ShouldStop = Callable[[float], str | None]
"""Asked before every step with the seconds that it is expected to take, and with 0 between the
pieces of a step; returns the reason to make no more steps and to leave the present one, or None."""


def never_stop(seconds: float) -> str | None:
    """Let an adaptation make all its steps."""
    return None
