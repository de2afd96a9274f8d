"""Adapt to documents once, and keep the adaptations for any number of queries."""

from collections.abc import AsyncIterator
from typing import Annotated, Any

from fastapi import APIRouter, Body, Path, Request
from starlette.responses import Response

from refine_server.server.adaptations.adaptation import Adaptation
from refine_server.server.api.adaptations_schema import (
    ADAPTATION_EVENTS,
    EXAMPLES,
    AdaptationBody,
    AdaptationChanges,
    AdaptationDeleted,
    AdaptationList,
    AdaptationResource,
)
from refine_server.server.api.documents import read_document
from refine_server.server.api.fields import require_model
from refine_server.server.api.stream_events import progress_event
from refine_server.server.http.connections import cancel_on_disconnect
from refine_server.server.http.dependencies import (
    AdaptationsDep,
    EngineDep,
    FilesDep,
    OwnerDep,
    SessionDep,
    SettingsDep,
)
from refine_server.server.http.errors import ErrorBody, documented
from refine_server.server.http.json_body import JsonRoute
from refine_server.server.http.request_log import RequestLog
from refine_server.server.http.respond import StreamEvent, event_stream, event_stream_docs

router = APIRouter(prefix="/v1/adaptations", tags=["adaptations"], route_class=JsonRoute)

AdaptationId = Annotated[str, Path(max_length=128, description="The adaptation's id.")]

CREATED: dict[int | str, dict[str, Any]] = {
    200: {"model": AdaptationResource, "description": "An adaptation that has ended."},
    202: {"model": AdaptationResource, "description": "An adaptation that is queued or running."},
}
STREAM_DOCS: dict[int | str, dict[str, Any]] = {
    200: {
        "content": event_stream_docs({**ADAPTATION_EVENTS, "error": ErrorBody}),
        "description": "Server-sent events.",
    }
}


@router.post(
    "",
    status_code=202,
    responses={**CREATED, **documented(400, 404, 409, 413, 422, 429, 503)},
)
async def create_adaptation(
    body: Annotated[AdaptationBody, Body(openapi_examples=EXAMPLES)],
    request: Request,
    response: Response,
    owner: OwnerDep,
    session: SessionDep,
    engine: EngineDep,
    adaptations: AdaptationsDep,
    files: FilesDep,
) -> AdaptationResource:
    """Adapt a copy of the fast weights to a document, once, for any number of queries.

    A request with the same document, configuration and seed joins the adaptation that exists, so
    that a retry costs nothing. Once it is queued, it continues when the connection closes; DELETE
    cancels it.
    """
    model = engine.ready().name
    require_model(body.model, model)
    async with cancel_on_disconnect(request.receive):
        document = await read_document(body.document, files, owner)
        adaptation = await adaptations.create(
            body.to_work(document.text, owner, document.pages),
            request_id=request.state.request_id,
            session=session,
            ttl_seconds=body.ttl_seconds,
            priority=body.priority,
            timeout_seconds=body.timeout_seconds,
        )
        if label := body.label():
            await adaptations.label(owner, adaptation.id, label)
    response.status_code = 200 if adaptation.status.is_final else 202
    RequestLog.of(request.scope).describe(model=model, adaptation=adaptation.id)
    below = request.scope.get("root_path", "")
    response.headers["location"] = f"{below}/v1/adaptations/{adaptation.id}"
    return AdaptationResource.of(adaptation, model)


@router.get("", responses=documented(503))
async def list_adaptations(
    owner: OwnerDep, engine: EngineDep, adaptations: AdaptationsDep
) -> AdaptationList:
    """List the caller's adaptations, the newest first."""
    model = engine.ready().name
    return AdaptationList(
        data=[AdaptationResource.of(a, model) for a in await adaptations.list(owner)]
    )


@router.get("/{adaptation_id}", responses=documented(404, 422, 503))
async def get_adaptation(
    adaptation_id: AdaptationId, owner: OwnerDep, engine: EngineDep, adaptations: AdaptationsDep
) -> AdaptationResource:
    """Show an adaptation as it is now."""
    model = engine.ready().name
    return AdaptationResource.of(await adaptations.get(owner, adaptation_id), model)


@router.get(
    "/{adaptation_id}/events",
    response_model=None,
    responses={**STREAM_DOCS, **documented(404, 422, 503)},
)
async def follow_adaptation(
    adaptation_id: AdaptationId,
    request: Request,
    owner: OwnerDep,
    engine: EngineDep,
    adaptations: AdaptationsDep,
    settings: SettingsDep,
) -> Response:
    """Stream how far it is as server-sent events, every step from the first on, and how it ended.

    The first event is `request.accepted`. Where nothing happens for two seconds, `request.progress`
    says what is being done and how long it will still take.
    The last event is `adaptation.ready`, `adaptation.failed` or `adaptation.cancelled`; its data is
    the whole resource.
    """
    model = engine.ready().name
    adaptation = await adaptations.get(owner, adaptation_id)
    log = RequestLog.of(request.scope)
    log.describe(model=model, adaptation=adaptation_id)
    return event_stream(_chunks(adaptation, model, log), settings.shutdown_seconds)


@router.patch("/{adaptation_id}", responses=documented(400, 404, 422, 503))
async def change_adaptation(
    adaptation_id: AdaptationId,
    body: AdaptationChanges,
    owner: OwnerDep,
    engine: EngineDep,
    adaptations: AdaptationsDep,
) -> AdaptationResource:
    """Name an adaptation, or pin it."""
    model = engine.ready().name
    changed = await adaptations.label(owner, adaptation_id, body.label())
    return AdaptationResource.of(changed, model)


@router.delete("/{adaptation_id}", responses=documented(404, 422, 503))
async def delete_adaptation(
    adaptation_id: AdaptationId, owner: OwnerDep, adaptations: AdaptationsDep
) -> AdaptationDeleted:
    """Delete an adaptation; one that runs is cancelled at its next step."""
    await adaptations.delete(owner, adaptation_id)
    return AdaptationDeleted(id=adaptation_id)


async def _chunks(
    adaptation: Adaptation, model: str, log: RequestLog
) -> AsyncIterator[StreamEvent]:
    async for event in adaptation.follow():
        encoded = progress_event(
            event,
            id=adaptation.id,
            steps=adaptation.config.optimizer.steps,
            seconds_left=adaptation.seconds_left,
        )
        if encoded is not None:
            name, data = encoded
            yield StreamEvent(event=name, data=data.model_dump_json())
    resource = AdaptationResource.of(adaptation, model)
    name = f"adaptation.{adaptation.status.value}"
    log.has_ended = True
    yield StreamEvent(event=name, data=resource.model_dump_json())
