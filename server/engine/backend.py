"""The interface between the engine and a model."""

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Protocol

from refine_server.server.engine.encoder import TemplatePool
from refine_server.ttt.batching import Program, stream
from refine_server.ttt.interface.config import (
    AdaptConfig,
    OptimizerConfig,
    RolloutConfig,
    SamplingConfig,
)
from refine_server.ttt.interface.events import AnswerCompleted, Event
from refine_server.ttt.interface.requests import AnswerRequest, PromptForm, Work
from refine_server.ttt.programs.encode import EncodedWork

if TYPE_CHECKING:  # it imports torch, which `--help` should not wait for
    from refine_server.ttt.document import AdaptedDocument

Emit = Callable[[Event], None]
"""Receives a program's events while it runs."""
ShouldStop = Callable[[], str | None]
"""Asked after every step; returns the reason to make no more steps, or None to go on."""


class Backend(Protocol):
    """A model that encodes requests and runs their programs.

    ``start``, its programs and ``verify`` belong to the thread that opened the backend; every
    other method may be called from any thread.
    """

    name: str
    family: str
    parameters: int
    """How many the base model has."""
    dtype: str
    device: str
    prompt_form: PromptForm
    fingerprint: str
    """Hash of the base weights as they were loaded."""
    templates: TemplatePool
    """Prompt templates and tokenizers for other threads than the model's."""

    @property
    def cached_document_bytes(self) -> int:
        """Bytes of documents that are kept as the base model read them."""

    def encode(self, work: Work) -> EncodedWork:
        """Return a request with its texts as token ids.

        Raises:
            RequestError: a text is empty or too long, or a token id is unknown.
        """

    def start(self, work: EncodedWork, emit: Emit, should_stop: ShouldStop) -> Program[None]:
        """Return the program that does the work; closing it cancels the work.

        The last event that it emits is a ``Last``. The program raises IsolationError if the work
        uses a document of another owner.
        """

    def verify(self) -> bool:
        """Return whether the base weights are, bit for bit, what was loaded."""

    def dump(self, document: "AdaptedDocument") -> tuple[bytes, dict[str, Any]]:
        """Return an adapted document as bytes, and their description as JSON values."""

    def restore(self, data: bytes, description: dict[str, Any]) -> "AdaptedDocument":
        """Return the document that ``dump`` was given.

        Raises:
            DamagedError: the data or the description is not whole.
        """


SELF_CHECK = AnswerRequest(
    document="The lighthouse keeper writes the weather into a blue book every evening at eight, "
    "and the harbour master reads it in the morning before the first boat leaves.",
    query="When does the keeper write?",
    adapt=AdaptConfig(
        rollouts=RolloutConfig(positions=1, per_position=2),
        optimizer=OptimizerConfig(steps=1),
        guard="none",
    ),
    sampling=SamplingConfig(max_tokens=1),
)


def self_check(backend: Backend) -> None:
    """Make one small adaptation step and decode one token, before any request is accepted.

    Raises:
        RuntimeError: the adaptation is not finite, or it changed the base weights.
    """
    work = backend.encode(SELF_CHECK)
    events: Iterator[Event] = stream(lambda emit: backend.start(work, emit, lambda: None))
    for event in events:
        if isinstance(event, AnswerCompleted) and event.adaptation.guard is not None:
            raise RuntimeError(f"self-check failed: {event.adaptation.guard}")
    if not backend.verify():
        raise RuntimeError("self-check failed: it changed the base weights")
