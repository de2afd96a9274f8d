"""One batch as a resource."""

import secrets
import time
from enum import StrEnum

from pydantic import BaseModel, Field

WINDOW_SECONDS = 24 * 3600.0
"""Time from a batch's creation to its end at the latest."""


class Status(StrEnum):
    """Where a batch is in its life::

    VALIDATING ──▶ IN_PROGRESS ──▶ FINALIZING ──▶ COMPLETED
        │               │
        │               ├──▶ EXPIRED
        │               ├──▶ CANCELLING ──▶ CANCELLED
        └───────────────┴──▶ FAILED
    """

    VALIDATING = "validating"
    IN_PROGRESS = "in_progress"
    FINALIZING = "finalizing"
    COMPLETED = "completed"
    FAILED = "failed"
    EXPIRED = "expired"
    CANCELLING = "cancelling"
    CANCELLED = "cancelled"

    @property
    def is_final(self) -> bool:
        """Whether the batch has ended."""
        return self in (Status.COMPLETED, Status.FAILED, Status.EXPIRED, Status.CANCELLED)


class BatchFault(BaseModel):
    """Why a batch failed as a whole."""

    code: str
    message: str
    line: int | None = None
    param: str | None = None


class Batch(BaseModel):
    """What is known of a batch. Times are seconds since 1970. It is stored in this form."""

    id: str = Field(default_factory=lambda: f"batch_{secrets.token_hex(16)}")
    owner: str
    endpoint: str
    input_file_id: str
    output_ttl_seconds: float | None
    """How long its outputs are kept; None: as long as the server keeps files."""
    metadata: dict[str, str]
    status: Status = Status.VALIDATING
    created_at: float = Field(default_factory=time.time)
    since: dict[Status, float] = {}
    """When it reached each later status."""
    total: int = 0
    completed: int = 0
    failed: int = 0
    """Requests in all, and those that were answered and that failed."""
    output_file_id: str | None = None
    error_file_id: str | None = None
    faults: list[BatchFault] = []
    beat: int = 0
    """Goes up while a server works on it, so that others see that the server lives."""

    @property
    def expires_at(self) -> float:
        """When it ends at the latest."""
        return self.created_at + WINDOW_SECONDS

    def enter(self, status: Status) -> None:
        """Change the status."""
        self.status = status
        self.since[status] = time.time()
