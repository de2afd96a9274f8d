"""The wire contract of batches, as OpenAI's API has it."""

from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from pydantic_core import PydanticCustomError

from refine_server.server.api.documents import FileId
from refine_server.server.api.files_schema import ExpiresAfter
from refine_server.server.api.metadata import Metadata
from refine_server.server.api.openai.compatibility import NO_EMBEDDINGS
from refine_server.server.batches.batch import Batch, BatchFault, Status
from refine_server.ttt.interface.strict import StrictModel


def _served(value: object) -> object:
    if value == "/v1/embeddings":
        message = "is not supported by this server: {reason}"
        raise PydanticCustomError("unsupported", message, {"reason": NO_EMBEDDINGS})
    return value


class BatchBody(StrictModel):
    """Requests in a file, to be answered within a day."""

    model_config = ConfigDict(title="BatchRequest")

    input_file_id: FileId = Field(
        description="A file of purpose `batch`. Each line has the fields `custom_id`, `method` "
        "(POST), `url` (the endpoint) and `body`."
    )
    endpoint: Annotated[
        Literal["/v1/answers", "/v1/completions", "/v1/chat/completions", "/v1/responses"],
        BeforeValidator(_served),
    ]
    completion_window: Literal["24h"]
    metadata: Metadata | None = None
    output_expires_after: ExpiresAfter | None = Field(
        None, description="Default: the server's setting (--file-ttl-seconds)."
    )


class RequestCounts(BaseModel):
    """How many requests a batch has, and how many have ended."""

    total: int
    completed: int
    failed: int


class BatchFaults(BaseModel):
    """Why a batch failed as a whole."""

    object: Literal["list"] = "list"
    data: list[BatchFault]


class BatchResource(BaseModel):
    """A batch. Times are seconds since 1970, null until its status is reached."""

    id: str
    object: Literal["batch"] = "batch"
    endpoint: str
    model: str
    errors: BatchFaults | None
    input_file_id: str
    completion_window: Literal["24h"] = "24h"
    status: Status
    output_file_id: str | None = Field(description="The answers, once the batch has ended.")
    error_file_id: str | None = Field(
        description="The requests that failed, each with the number of its `line`."
    )
    created_at: int
    in_progress_at: int | None
    expires_at: int
    finalizing_at: int | None
    completed_at: int | None
    failed_at: int | None
    expired_at: int | None
    cancelling_at: int | None
    cancelled_at: int | None
    request_counts: RequestCounts
    metadata: dict[str, str]

    @classmethod
    def of(cls, batch: Batch, model: str) -> "BatchResource":
        """Return the resource as it is now."""

        def at(status: Status) -> int | None:
            return int(batch.since[status]) if status in batch.since else None

        return cls(
            id=batch.id,
            endpoint=batch.endpoint,
            model=model,
            errors=BatchFaults(data=batch.faults) if batch.faults else None,
            input_file_id=batch.input_file_id,
            status=batch.status,
            output_file_id=batch.output_file_id,
            error_file_id=batch.error_file_id,
            created_at=int(batch.created_at),
            in_progress_at=at(Status.IN_PROGRESS),
            expires_at=int(batch.expires_at),
            finalizing_at=at(Status.FINALIZING),
            completed_at=at(Status.COMPLETED),
            failed_at=at(Status.FAILED),
            expired_at=at(Status.EXPIRED),
            cancelling_at=at(Status.CANCELLING),
            cancelled_at=at(Status.CANCELLED),
            request_counts=RequestCounts(
                total=batch.total, completed=batch.completed, failed=batch.failed
            ),
            metadata=batch.metadata,
        )


class BatchList(BaseModel):
    """A page of batches."""

    object: Literal["list"] = "list"
    data: list[BatchResource]
    first_id: str | None
    last_id: str | None
    has_more: bool
