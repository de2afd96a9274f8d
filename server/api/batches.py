"""Answer requests in a file, at low priority and within a day."""

from typing import Annotated

from fastapi import APIRouter, Path, Query

from refine_server.server.api.batches_schema import BatchBody, BatchList, BatchResource
from refine_server.server.api.paging import After, page
from refine_server.server.batches.batch import Batch
from refine_server.server.http.dependencies import BatchesDep, EngineDep, FilesDep, OwnerDep
from refine_server.server.http.errors import ApiError, documented
from refine_server.server.http.json_body import JsonRoute

router = APIRouter(prefix="/v1/batches", tags=["batches"], route_class=JsonRoute)

BatchId = Annotated[str, Path(max_length=128, description="The batch's id.")]


@router.post("", responses=documented(400, 404, 413, 422, 429, 503))
async def create_batch(
    body: BatchBody, owner: OwnerDep, engine: EngineDep, files: FilesDep, batches: BatchesDep
) -> BatchResource:
    """Begin to answer the requests in a file.

    They are answered as their route answers them, a few at a time, behind all other requests. Each
    that fails is a line of the error file. The batch goes on when its client leaves; one that a
    stop of the server interrupts fails with the code `server_restarted`.
    """
    model = engine.ready().name
    file = await files.get(owner, body.input_file_id, "input_file_id")
    if file.purpose != "batch":
        message = "input_file_id: the file must have the purpose batch"
        raise ApiError(422, message, "invalid_value", param="input_file_id")
    after = body.output_expires_after
    batch = Batch(
        owner=owner,
        endpoint=body.endpoint,
        input_file_id=file.id,
        output_ttl_seconds=after.seconds if after else None,
        metadata=body.metadata or {},
    )
    return BatchResource.of(await batches.create(batch, file), model)


@router.get("", responses=documented(404, 422, 503))
async def list_batches(
    owner: OwnerDep,
    engine: EngineDep,
    batches: BatchesDep,
    after: After = None,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
) -> BatchList:
    """List the caller's batches, the newest first."""
    model = engine.ready().name
    data, has_more = page(batches.list(owner), after, limit)
    resources = [BatchResource.of(batch, model) for batch in data]
    return BatchList(
        data=resources,
        first_id=resources[0].id if resources else None,
        last_id=resources[-1].id if resources else None,
        has_more=has_more,
    )


@router.get("/{batch_id}", responses=documented(404, 422, 503))
async def get_batch(
    batch_id: BatchId, owner: OwnerDep, engine: EngineDep, batches: BatchesDep
) -> BatchResource:
    """Show a batch as it is now."""
    return BatchResource.of(batches.get(owner, batch_id), engine.ready().name)


@router.post("/{batch_id}/cancel", responses=documented(404, 409, 422, 503))
async def cancel_batch(
    batch_id: BatchId, owner: OwnerDep, engine: EngineDep, batches: BatchesDep
) -> BatchResource:
    """Cancel a batch. Requests that run end at their next step; the answers so far are kept."""
    return BatchResource.of(await batches.cancel(owner, batch_id), engine.ready().name)
