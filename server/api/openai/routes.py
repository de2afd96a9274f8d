"""Completions and chat completions, as clients of OpenAI's API know them."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request
from pydantic import BaseModel
from starlette.responses import Response

from refine_server.server.api.openai.format import (
    ChatEncoder,
    CompletionEncoder,
    GenerationEncoder,
    UsageIn,
)
from refine_server.server.api.openai.requests import ChatBody, CompletionBody, GenerationBody
from refine_server.server.api.openai.responses import ChatCompletion, Completion
from refine_server.server.api.openai.target import open_target, own_params
from refine_server.server.engine.run import Run
from refine_server.server.http.dependencies import (
    AdaptationsDep,
    EngineDep,
    FilesDep,
    OwnerDep,
    SettingsDep,
)
from refine_server.server.http.errors import documented
from refine_server.server.http.json_body import JsonRoute
from refine_server.server.http.respond import RunResponse, event_stream_docs
from refine_server.ttt.interface.requests import CompletionRequest, Conversation

router = APIRouter(prefix="/v1", tags=["openai"], route_class=JsonRoute)


@dataclass(frozen=True)
class Generation:
    """Responds to requests for text, with the parts of the app that this needs."""

    request: Request
    owner: OwnerDep
    engine: EngineDep
    adaptations: AdaptationsDep
    files: FilesDep
    settings: SettingsDep

    def respond(
        self,
        body: GenerationBody,
        work: CompletionRequest,
        encoder_class: type[GenerationEncoder],
    ) -> RunResponse:
        """Do the work on what ``model`` and ``ttt`` mean, and respond as the class encodes it."""
        backend = self.engine.ready()
        request_id = self.request.state.request_id

        @asynccontextmanager
        async def exchange() -> AsyncIterator[tuple[Run, GenerationEncoder]]:
            with own_params(body):
                async with (
                    open_target(
                        body,
                        served_model=backend.name,
                        adaptations=self.adaptations,
                        files=self.files,
                        owner=self.owner,
                        request_id=request_id,
                    ) as target,
                    self.engine.run(
                        target.of(work, self.owner),
                        request_id=request_id,
                        timeout_seconds=self.settings.request_timeout_seconds,
                    ) as run,
                ):
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

        return RunResponse(
            exchange(),
            stream=bool(body.stream),
            shutdown_seconds=self.settings.shutdown_seconds,
        )


GenerationDep = Annotated[Generation, Depends()]


def _usage_in(body: GenerationBody) -> UsageIn:
    options = body.stream_options
    if not body.stream:
        return "response"
    if options is None or not options.include_usage:
        return "no_chunk"
    return "every_chunk" if options.continuous_usage_stats else "last_chunk"


def _documented(response: type[BaseModel]) -> dict[int | str, dict[str, Any]]:
    success = {
        "model": response,
        "content": event_stream_docs(("message", "error"), data_is_json=False),
        "description": "The whole response. With `stream`, server-sent events: chunks as data, and "
        "at the end `[DONE]`, or an `error` event if the request fails.",
    }
    return {200: success, **documented(400, 404, 409, 413, 422, 429, 500, 503, 504)}


@router.post("/completions", responses=_documented(Completion), response_model=None)
async def create_completion(body: CompletionBody, generation: GenerationDep) -> Response:
    """Continue prompts as they are.

    With `ttt.document`, or an adaptation's id as `model`, each prompt continues the document, under
    the adaptation's fast weights if there is one; otherwise the base model continues it alone.
    """
    work = CompletionRequest(
        prompts=tuple(p if isinstance(p, str) else tuple(p) for p in body.prompt),
        sampling=body.to_sampling(generation.settings.max_tokens),
        n=body.choices,
        logprobs=body.logprobs,
        echo=bool(body.echo),
    )
    return generation.respond(body, work, CompletionEncoder)


@router.post("/chat/completions", responses=_documented(ChatCompletion), response_model=None)
async def create_chat_completion(body: ChatBody, generation: GenerationDep) -> Response:
    """Answer a conversation.

    With `ttt.document`, or an adaptation's id as `model`, the messages follow the document, as the
    query of `/v1/answers` does; otherwise the base model answers.
    """
    work = CompletionRequest(
        prompts=(Conversation(tuple(message.to_message() for message in body.messages)),),
        sampling=body.to_sampling(generation.settings.max_tokens),
        n=body.choices,
        logprobs=(body.top_logprobs or 0) if body.logprobs else None,
    )
    return generation.respond(body, work, ChatEncoder)
