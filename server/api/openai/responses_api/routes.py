"""Responses, as clients of OpenAI's newer API know them."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import APIRouter
from starlette.responses import Response

from refine_server.server.api.openai.responses_api.encoder import ResponsesEncoder
from refine_server.server.api.openai.responses_api.request import ResponsesBody
from refine_server.server.api.openai.responses_api.resource import ResponseResource
from refine_server.server.api.openai.target import submit
from refine_server.server.http.dependencies import Caller, CallerDep, Services, ServicesDep
from refine_server.server.http.errors import documented
from refine_server.server.http.json_body import JsonRoute
from refine_server.server.http.respond import Exchange, RunResponse, event_stream_docs
from refine_server.ttt.interface.requests import CompletionRequest

router = APIRouter(prefix="/v1", tags=["openai"], route_class=JsonRoute)

STREAM_EVENTS = (
    "response.created",
    "response.in_progress",
    "response.output_item.added",
    "response.content_part.added",
    "response.output_text.delta",
    "response.output_text.annotation.added",
    "response.output_text.done",
    "response.content_part.done",
    "response.output_item.done",
    "response.completed",
    "response.incomplete",
    "response.failed",
)

RESPONSE_DOCS: dict[int | str, dict[str, Any]] = {
    200: {
        "model": ResponseResource,
        "content": event_stream_docs(dict.fromkeys(STREAM_EVENTS)),
        "description": "The whole response. With `stream`, server-sent events, of which the last "
        "is `response.completed`, `response.incomplete` or `response.failed`.",
    }
}


@router.post(
    "/responses",
    responses={**RESPONSE_DOCS, **documented(400, 404, 409, 413, 422, 429, 500, 503, 504)},
    response_model=None,
)
async def create_response(
    body: ResponsesBody, services: ServicesDep, caller: CallerDep
) -> Response:
    """Answer a text or a conversation.

    With `ttt.document`, a file in the input, or an adaptation's id as `model`, the conversation
    follows the document, as the query of `/v1/answers` does; otherwise the base model answers.
    """
    return RunResponse(
        respond(body, services, caller),
        stream=bool(body.stream),
        shutdown_seconds=services.settings.shutdown_seconds,
    )


@asynccontextmanager
async def respond(
    body: ResponsesBody, services: Services, caller: Caller
) -> AsyncIterator[Exchange]:
    """Submit the work of a request."""
    work = CompletionRequest(
        prompts=(body.conversation_to_answer(),),
        sampling=body.to_sampling(services.settings.max_tokens),
        logprobs=body.logprobs,
    )
    async with submit(body, work, services, caller) as (run, target, backend):
        encoder = ResponsesEncoder(
            run.id, body.model or backend.name, body, ttt=target.report, file=target.file
        )
        yield run, encoder
