"""Adapt to documents and keep them for questions."""

from collections.abc import AsyncIterator
from typing import Annotated, Any

import anyio
from fastapi import APIRouter, Path, Request
from sse_starlette import EventSourceResponse, ServerSentEvent
from starlette.responses import Response

from refine_server.server.adaptations.adaptation import Adaptation
from refine_server.server.api.adaptations_schema import (
    AdaptationBody,
    AdaptationDeleted,
    AdaptationList,
    AdaptationResource,
)
from refine_server.server.api.answers_schema import Step, require_model
from refine_server.server.http.dependencies import AdaptationsDep, EngineDep, OwnerDep, SettingsDep
from refine_server.server.http.errors import documented
from refine_server.server.http.streams import event_stream_docs

router = APIRouter(prefix="/v1/adaptations", tags=["adaptations"])

AdaptationId = Annotated[str, Path(max_length=128, description="As given when it was created.")]

STREAM_EVENTS = (
    "adaptation.step",
    "adaptation.ready",
    "adaptation.failed",
    "adaptation.cancelled",
)

CREATED: dict[int | str, dict[str, Any]] = {
    200: {"model": AdaptationResource, "description": "It is there already, ready."},
    202: {"model": AdaptationResource, "description": "It is queued, or is being made."},
}


@router.post(
    "",
    status_code=202,
    responses={**CREATED, **documented(400, 404, 413, 422, 429, 503)},
)
async def create_adaptation(
    body: AdaptationBody,
    request: Request,
    response: Response,
    owner: OwnerDep,
    engine: EngineDep,
    adaptations: AdaptationsDep,
) -> AdaptationResource:
    """Adapt a copy of the fast weights to a document, once, for any number of questions.

    The same document with the same configuration and seed joins what is there already, so a retry
    costs nothing. It goes on when the connection closes; DELETE cancels it.
    """
    model = engine.ready().name
    require_model(body.model, model)
    adaptation = await adaptations.create(
        body.to_work(owner),
        request_id=request.state.request_id,
        ttl_seconds=body.ttl_seconds,
        priority=body.priority,
        timeout_seconds=body.timeout_seconds,
    )
    response.status_code = 200 if adaptation.status.is_final else 202
    response.headers["location"] = f"/v1/adaptations/{adaptation.id}"
    return AdaptationResource.of(adaptation, model)


@router.get("", responses=documented(503))
async def list_adaptations(
    owner: OwnerDep, engine: EngineDep, adaptations: AdaptationsDep
) -> AdaptationList:
    """One's own adaptations, the newest first."""
    model = engine.ready().name
    return AdaptationList(data=[AdaptationResource.of(a, model) for a in adaptations.list(owner)])


@router.get("/{adaptation_id}", responses=documented(404, 422, 503))
async def get_adaptation(
    adaptation_id: AdaptationId, owner: OwnerDep, engine: EngineDep, adaptations: AdaptationsDep
) -> AdaptationResource:
    """How an adaptation is doing."""
    model = engine.ready().name
    return AdaptationResource.of(adaptations.get(owner, adaptation_id), model)


@router.get(
    "/{adaptation_id}/events",
    response_model=None,
    responses={200: event_stream_docs(STREAM_EVENTS), **documented(404, 422, 503)},
)
async def follow_adaptation(
    adaptation_id: AdaptationId,
    owner: OwnerDep,
    engine: EngineDep,
    adaptations: AdaptationsDep,
    settings: SettingsDep,
) -> Response:
    """Server-sent events: every step from the first on, then how it ended.

    The last event is `adaptation.ready`, `adaptation.failed` or `adaptation.cancelled`; its data is
    the whole resource.
    """
    model = engine.ready().name
    adaptation = adaptations.get(owner, adaptation_id)
    # At shutdown the engine ends the adaptation itself, so the stream can still tell how it ended.
    return EventSourceResponse(
        _events(adaptation, model),
        shutdown_event=anyio.Event(),
        shutdown_grace_period=settings.shutdown_seconds + 1.0,
    )


@router.delete("/{adaptation_id}", responses=documented(404, 422, 503))
async def delete_adaptation(
    adaptation_id: AdaptationId, owner: OwnerDep, adaptations: AdaptationsDep
) -> AdaptationDeleted:
    """Forget an adaptation; one that runs is cancelled at its next step."""
    await adaptations.delete(owner, adaptation_id)
    return AdaptationDeleted(id=adaptation_id)


async def _events(adaptation: Adaptation, model: str) -> AsyncIterator[ServerSentEvent]:
    async for step in adaptation.follow():
        yield ServerSentEvent(
            event="adaptation.step", data=Step.model_validate(step).model_dump_json()
        )
    resource = AdaptationResource.of(adaptation, model)
    yield ServerSentEvent(
        event=f"adaptation.{adaptation.status.value}", data=resource.model_dump_json()
    )
