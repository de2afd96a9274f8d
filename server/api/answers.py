"""Answer a question about a document: adapted to for this request, or before."""

import contextlib
from collections.abc import AsyncIterator, Callable
from functools import partial
from typing import Any

import anyio
from fastapi import APIRouter, Request
from sse_starlette import EventSourceResponse, ServerSentEvent
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from refine_server.server.adaptations.adaptation import is_adaptation_id
from refine_server.server.adaptations.registry import Adaptations
from refine_server.server.api.answers_schema import (
    AnswerBody,
    AnswerResponse,
    Origin,
    require_model,
    wire_event,
)
from refine_server.server.engine.run import Run
from refine_server.server.http.dependencies import AdaptationsDep, EngineDep, OwnerDep, SettingsDep
from refine_server.server.http.disconnect import CLIENT_CLOSED_REQUEST, unless_gone
from refine_server.server.http.errors import ApiError, as_api_error, documented
from refine_server.server.http.streams import event_stream_docs
from refine_server.server.settings import Settings
from refine_server.ttt.interface.events import AnswerCompleted
from refine_server.ttt.interface.requests import Work

router = APIRouter(tags=["answers"])

STREAM_EVENTS = ("answer.base", "adaptation.step", "answer.delta", "answer.completed", "error")

RESPONSE_DOCS: dict[int | str, dict[str, Any]] = {
    200: {
        "model": AnswerResponse,
        **event_stream_docs(STREAM_EVENTS),
        "description": "The answer. With `stream`, server-sent events: `answer.base` (with "
        "`compare_base`), `adaptation.step`, `answer.delta`, and at the end `answer.completed`, "
        "whose data is the whole response, or `error`.",
    }
}


@router.post(
    "/v1/answers",
    responses={**RESPONSE_DOCS, **documented(400, 404, 408, 409, 413, 422, 429, 500, 503, 504)},
    response_model=None,
)
async def create_answer(
    body: AnswerBody,
    request: Request,
    owner: OwnerDep,
    engine: EngineDep,
    adaptations: AdaptationsDep,
    settings: SettingsDep,
) -> Response:
    """Answer the query from a document: one of this request's own, or an adaptation.

    With a `document`, a copy of the fast weights is adapted to it that ends with this request. With
    an `adaptation` (its id, here or as `model`), the answer comes from that. Closing the connection
    cancels the work at its next step.
    """
    model = engine.ready().name
    adaptation_id = body.adaptation
    if adaptation_id is None and body.model is not None and is_adaptation_id(body.model):
        adaptation_id = body.model
    if adaptation_id != body.model:
        require_model(body.model, model)
    if body.max_tokens is not None and body.max_tokens > settings.max_tokens:
        message = f"max_tokens: this server allows {settings.max_tokens} at most"
        raise ApiError(422, message, "invalid_value", param="max_tokens")
    async with contextlib.AsyncExitStack() as stack:
        work = await _work(body, adaptation_id, owner, adaptations, settings, stack)
        longest = settings.request_timeout_seconds
        timeout = min(body.timeout_seconds or longest, longest)
        run = await stack.enter_async_context(
            engine.run(
                work,
                request_id=request.state.request_id,
                timeout_seconds=timeout,
                priority=body.priority,
            )
        )
        if body.stream:
            told = partial(_origin, run, model, adaptation_id)
            return AnswerStream(run, told, settings.shutdown_seconds, stack.pop_all())
        done = await unless_gone(request, _completed(run))
    if done is None:
        return Response(status_code=CLIENT_CLOSED_REQUEST)
    response = AnswerResponse.of(done, _origin(run, model, adaptation_id))
    return Response(response.model_dump_json(), media_type="application/json")


def _origin(run: Run, model: str, adaptation_id: str | None) -> Origin:
    return Origin(run.id, model, run.queue_seconds, adaptation_id)


async def _work(
    body: AnswerBody,
    adaptation_id: str | None,
    owner: str,
    adaptations: Adaptations,
    settings: Settings,
    stack: contextlib.AsyncExitStack,
) -> Work:
    """What the engine is to do; an adaptation stays in memory until the stack is closed."""
    if adaptation_id is None:
        return body.to_work(settings.max_tokens, owner)
    adapted = await stack.enter_async_context(adaptations.use(owner, adaptation_id))
    return body.to_question(adapted, settings.max_tokens, owner)


async def _completed(run: Run) -> AnswerCompleted:
    last = [event async for event in run][-1]
    assert isinstance(last, AnswerCompleted)
    return last


class AnswerStream(EventSourceResponse):
    """A run's events as server-sent events; ``held`` is closed at the end, and the run with it."""

    def __init__(
        self,
        run: Run,
        origin: Callable[[], Origin],
        shutdown_seconds: float,
        held: contextlib.AsyncExitStack,
    ) -> None:
        # At shutdown the engine ends jobs itself, so the stream can still tell how it ended.
        super().__init__(
            _server_sent_events(run, origin),
            shutdown_event=anyio.Event(),
            shutdown_grace_period=shutdown_seconds + 1.0,
        )
        self.held = held

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with self.held:
            await super().__call__(scope, receive, send)


async def _server_sent_events(
    run: Run, origin: Callable[[], Origin]
) -> AsyncIterator[ServerSentEvent]:
    try:
        async for event in run:
            told = wire_event(event, origin())
            if told is not None:
                name, data = told
                yield ServerSentEvent(event=name, data=data.model_dump_json())
    except Exception as error:
        yield ServerSentEvent(event="error", data=as_api_error(error).json)
