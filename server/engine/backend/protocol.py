"""The interface between the engine and a model."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

from refine_server.server.engine.encoder import TemplatePool
from refine_server.ttt.batching import Program
from refine_server.ttt.interface.events import Emit, ShouldStop
from refine_server.ttt.interface.requests import Limits, PromptForm, Work
from refine_server.ttt.programs.encode import EncodedWork

if TYPE_CHECKING:  # it imports torch, which `--help` should not wait for
    from refine_server.server.memory.budget import MemoryBudget
    from refine_server.ttt.kept import Kept


class Backend(Protocol):
    """A model that encodes requests and runs their programs.

    ``start``, its programs, ``verify``, ``is_unchanged`` and ``synchronize`` belong to the thread
    that opened the backend; every other method may be called from any thread.
    """

    name: str
    family: str
    parameters: int
    """How many the base model has."""
    dtype: str
    device: str
    vocabulary: int
    """Number of tokens that the model knows; ids are below it. The tokenizer may have more."""
    prompt_form: PromptForm
    limits: Limits
    """The longest texts that are read."""
    fingerprint: str
    """Hash of the base weights as they were loaded."""
    templates: TemplatePool
    """Prompt templates and tokenizers for other threads than the model's."""

    @property
    def cached_document_bytes(self) -> int:
        """Bytes of documents that are kept as the base model read them."""

    def forget_document(self, owner: str, key: str) -> None:
        """Drop an owner's document that is kept as the base model read it, by its key."""

    def drop_expired_documents(self) -> None:
        """Drop the kept documents that were not used for too long."""

    def drop_excess_documents(self) -> None:
        """Drop kept documents that the memory budget has no room for any more."""

    def limit_memory(self, budget: "MemoryBudget") -> None:
        """Keep documents and activations within the budget; called before any work begins."""

    def request_bytes(self, work: EncodedWork) -> int:
        """Predict the memory that a request takes at its peak, without what is kept after it."""

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

    def share(self, has_company: Callable[[], bool]) -> None:
        """Run work in shorter pieces while ``has_company`` says that other work waits for it."""

    def verify(self) -> bool:
        """Return whether the base weights are, bit for bit, what was loaded."""

    def is_unchanged(self) -> bool:
        """Return whether sums of the base weights' bits are what they were when it was loaded.

        ``verify`` hashes all bits on the host; this takes the time of a decoded token.
        """

    def synchronize(self) -> None:
        """Wait until the device has done what was launched on it, so that seconds are true."""

    def dump(self, document: "Kept") -> tuple[bytes, dict[str, Any]]:
        """Return an adapted document as bytes, and their description as JSON values."""

    def restore(self, data: bytes, description: dict[str, Any]) -> "Kept":
        """Return the document that ``dump`` was given.

        Raises:
            DamagedError: the data or the description is not whole.
        """
