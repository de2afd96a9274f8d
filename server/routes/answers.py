"""Adapt to a document and answer a question about it."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import anyio
from fastapi import APIRouter, Request
from sse_starlette import EventSourceResponse, ServerSentEvent
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from refine_server.server.dependencies import EngineDep, SettingsDep
from refine_server.server.engine import Engine
from refine_server.server.errors import ApiError, as_api_error, documented
from refine_server.server.jobs import Job
from refine_server.server.schemas import AnswerBody, AnswerResponse, wire_event
from refine_server.server.settings import Settings
from refine_server.ttt.types import AnswerCompleted, AnswerRequest

router = APIRouter(tags=["answers"])

CLIENT_CLOSED_REQUEST = 499
"""Nobody receives this status; it stands in the log and the metrics (as in nginx)."""

STREAM_EVENTS = ("answer.base", "adaptation.step", "answer.delta", "answer.completed", "error")

RESPONSE_DOCS: dict[int | str, dict[str, Any]] = {
    200: {
        "model": AnswerResponse,
        "content": {
            "text/event-stream": {
                # As FastAPI itself describes one event of a stream (OpenAPI 3.2).
                "itemSchema": {
                    "type": "object",
                    "properties": {
                        "event": {"type": "string", "enum": STREAM_EVENTS},
                        "data": {"type": "string", "contentMediaType": "application/json"},
                    },
                    "required": ["event", "data"],
                }
            }
        },
        "description": "The answer. With `stream`, server-sent events: `answer.base` (with "
        "`compare_base`), `adaptation.step`, `answer.delta`, and at the end `answer.completed`, "
        "whose data is the whole response, or `error`.",
    }
}


@router.post(
    "/v1/answers",
    responses={**RESPONSE_DOCS, **documented(400, 404, 413, 422, 429, 500, 503, 504)},
    response_model=None,
)
async def create_answer(
    body: AnswerBody, request: Request, engine: EngineDep, settings: SettingsDep
) -> Response:
    """Adapt a copy of the fast weights to the document, then answer the query from it.

    The copy is this request's own and ends with it. Closing the connection cancels the work at its
    next step.
    """
    model = engine.ready().name
    answer_request = _checked(body, model, settings)
    job = Job(answer_request, request.state.request_id, settings.request_timeout_seconds)
    await engine.submit(job)
    if body.stream:
        return AnswerStream(engine, job, model, settings.shutdown_seconds)
    done = await _completed_or_gone(engine, job, request)
    if done is None:
        return Response(status_code=CLIENT_CLOSED_REQUEST)
    response = AnswerResponse.of(done, job_id=job.id, model=model, queue_seconds=job.queue_seconds)
    return Response(response.model_dump_json(), media_type="application/json")


def _checked(body: AnswerBody, model: str, settings: Settings) -> AnswerRequest:
    if body.model is not None and body.model != model:
        message = f"There is no model {body.model!r} here; {model!r} is served."
        raise ApiError(404, message, "model_not_found", param="model")
    if body.max_tokens is not None and body.max_tokens > settings.max_tokens:
        message = f"max_tokens: this server allows {settings.max_tokens} at most"
        raise ApiError(422, message, "invalid_value", param="max_tokens")
    return body.to_request(settings.max_tokens)


async def _completed_or_gone(engine: Engine, job: Job, request: Request) -> AnswerCompleted | None:
    """The end of a job, or None when the client went away before it."""
    answering = asyncio.create_task(_completed(engine, job))
    watching = asyncio.create_task(_gone(request))
    try:
        await asyncio.wait({answering, watching}, return_when=asyncio.FIRST_COMPLETED)
        return answering.result() if answering.done() else None
    finally:
        answering.cancel()
        watching.cancel()
        engine.cancel(job, "disconnect")


async def _completed(engine: Engine, job: Job) -> AnswerCompleted:
    events = [event async for event in engine.events(job)]
    last = events[-1]
    assert isinstance(last, AnswerCompleted)
    return last


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


class AnswerStream(EventSourceResponse):
    """A job's events as server-sent events; the job is cancelled however the response ends."""

    def __init__(self, engine: Engine, job: Job, model: str, shutdown_seconds: float) -> None:
        # At shutdown the engine ends jobs itself, so the stream can still tell how it ended.
        super().__init__(
            _server_sent_events(engine, job, model),
            shutdown_event=anyio.Event(),
            shutdown_grace_period=shutdown_seconds + 1.0,
        )
        self.engine = engine
        self.job = job

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self.engine.cancel(self.job, "disconnect")


async def _server_sent_events(
    engine: Engine, job: Job, model: str
) -> AsyncIterator[ServerSentEvent]:
    try:
        async for event in engine.events(job):
            told = wire_event(event, job_id=job.id, model=model, queue_seconds=job.queue_seconds)
            if told is not None:
                name, data = told
                yield ServerSentEvent(event=name, data=data.model_dump_json())
    except Exception as error:
        yield ServerSentEvent(event="error", data=as_api_error(error).json)
