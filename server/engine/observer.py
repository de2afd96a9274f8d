"""The observers' interface: how metrics and the cost model learn what the engine does."""

from collections.abc import Sequence

from refine_server.server.engine.backend.protocol import Backend
from refine_server.server.engine.scheduling.job import Job
from refine_server.ttt.interface.events import Event


class EngineObserver:
    """Is notified of what the worker does; each method does nothing unless it is overridden.

    All methods must be quick. They are called on the worker's thread, but for ``on_submitted``,
    ``on_left`` and ``on_deadline_missed``, which are called on the event loop's.
    """

    def on_opened(self, backend: Backend) -> None:
        """Handle that the model is loaded and has passed its self-check."""

    def on_submitted(self, job: Job) -> None:
        """Handle that a job is about to enter the queue, in the context of what asked for it."""

    def on_left(self, job: Job) -> None:
        """Handle that nobody waits for a job any more that was submitted; it may have ended."""

    def on_started(self, job: Job) -> None:
        """Handle the first turn of a job."""

    def on_batch(self, operation: str, outcomes: Sequence[object]) -> None:
        """Handle a batch of operations of one name: their results, or their exceptions."""

    def on_event(self, job: Job, event: Event) -> None:
        """Handle an event that a job's program emitted."""

    def on_ended(self, job: Job, worked_seconds: float) -> None:
        """Handle the end of a job that the worker had admitted; its status is final."""

    def on_idle(self) -> None:
        """Handle that there has been no work for a while."""

    def on_deadline_missed(self, stage: str) -> None:
        """Handle that work reached its time limit while it was encoding, queued or running."""

    def on_isolation_violated(self) -> None:
        """Handle that weights or states were about to be used for another owner, or changed."""
