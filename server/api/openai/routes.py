"""Completions and chat completions, as clients of OpenAI's API know them."""

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

from fastapi import APIRouter, Request
from pydantic import BaseModel
from starlette.responses import Response

from refine_server.server.api.openai.cut_prompt import warning_of
from refine_server.server.api.openai.format import (
    ChatEncoder,
    CompletionEncoder,
    GenerationEncoder,
    UsageIn,
)
from refine_server.server.api.openai.requests import ChatBody, ChoicesBody, CompletionBody
from refine_server.server.api.openai.responses import ChatCompletion, Completion
from refine_server.server.api.openai.target import submit
from refine_server.server.http.dependencies import Caller, CallerDep, Services, ServicesDep
from refine_server.server.http.errors import documented
from refine_server.server.http.json_body import JsonRoute
from refine_server.server.http.respond import Exchange, RunResponse, chunk_stream_docs
from refine_server.ttt.interface.requests import CompletionRequest, Conversation

router = APIRouter(prefix="/v1", tags=["openai"], route_class=JsonRoute)


def _usage_in(body: ChoicesBody) -> UsageIn:
    options = body.stream_options
    if not body.stream:
        return "response"
    if options is None or not options.include_usage:
        return "no_chunk"
    return "every_chunk" if options.continuous_usage_stats else "last_chunk"


def _documented(response: type[BaseModel]) -> dict[int | str, dict[str, Any]]:
    success = {
        "model": response,
        "content": chunk_stream_docs(),
        "description": "The whole response. With `stream`, server-sent events: chunks as data, and "
        "at the end `[DONE]`, or an `error` event if the request fails.",
    }
    return {200: success, **documented(400, 404, 409, 413, 422, 429, 500, 503, 504)}


@router.post("/completions", responses=_documented(Completion), response_model=None)
async def create_completion(
    body: CompletionBody, request: Request, services: ServicesDep, caller: CallerDep
) -> Response:
    """Continue prompts as they are.

    With `ttt.document`, or an adaptation's id as `model`, each prompt continues the document, under
    the adaptation's fast weights if there is one; otherwise the base model continues it alone.

    A prompt that seems to have lost its beginning before it was sent is told in the response header
    `x-refine-warning`.
    """
    request.state.warning = warning_of(
        body.prompt,
        body.to_sampling(services.settings.max_tokens).max_tokens,
        services.engine.ready().limits.sequence_tokens,
    )
    return RunResponse(
        complete(body, services, caller),
        stream=bool(body.stream),
        shutdown_seconds=services.settings.shutdown_seconds,
    )


@router.post("/chat/completions", responses=_documented(ChatCompletion), response_model=None)
async def create_chat_completion(
    body: ChatBody, services: ServicesDep, caller: CallerDep
) -> Response:
    """Answer a conversation.

    With `ttt.document`, a file in a message, or an adaptation's id as `model`, the messages follow
    the document, as the query of `/v1/answers` does; otherwise the base model answers.
    """
    return RunResponse(
        chat(body, services, caller),
        stream=bool(body.stream),
        shutdown_seconds=services.settings.shutdown_seconds,
    )


def complete(
    body: CompletionBody, services: Services, caller: Caller
) -> AbstractAsyncContextManager[Exchange]:
    """Submit the work of a request for completions.

    Raises:
        RequestError: the request cannot be served as written.
    """
    work = CompletionRequest(
        prompts=tuple(p if isinstance(p, str) else tuple(p) for p in body.prompt),
        sampling=body.to_sampling(services.settings.max_tokens),
        n=body.choices,
        logprobs=body.logprobs,
        echo=bool(body.echo),
    )
    return _generate(body, work, CompletionEncoder, services, caller)


def chat(
    body: ChatBody, services: Services, caller: Caller
) -> AbstractAsyncContextManager[Exchange]:
    """Submit the work of a request for chat completions.

    Raises:
        RequestError: the request cannot be served as written.
    """
    work = CompletionRequest(
        prompts=(Conversation(tuple(message.to_message() for message in body.messages)),),
        sampling=body.to_sampling(services.settings.max_tokens),
        n=body.choices,
        logprobs=(body.top_logprobs or 0) if body.logprobs else None,
    )
    return _generate(body, work, ChatEncoder, services, caller)


@asynccontextmanager
async def _generate(
    body: ChoicesBody,
    work: CompletionRequest,
    encoder_class: type[GenerationEncoder],
    services: Services,
    caller: Caller,
) -> AsyncIterator[Exchange]:
    async with submit(body, work, services, caller) as (run, target, backend):
        encoder = encoder_class(
            run.id,
            body.model or backend.name,
            backend.fingerprint,
            n=work.n,
            logprobs=work.logprobs is not None,
            usage_in=_usage_in(body),
            ttt=target.report,
        )
        yield run, encoder
