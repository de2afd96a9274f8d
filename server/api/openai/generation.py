"""A request of OpenAI's on its way: from its model and prompts to a job, and to its response."""

import json
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass
from typing import Annotated

import anyio
import anyio.to_thread
from fastapi import Depends, Request
from sse_starlette import EventSourceResponse, ServerSentEvent
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from refine_server.server.api.openai.format import Formatter, UsageIn
from refine_server.server.api.openai.requests import GenerationBody
from refine_server.server.api.openai.responses import TttReport
from refine_server.server.api.openai.target import Resolved, resolve
from refine_server.server.http.dependencies import AdaptationsDep, EngineDep, OwnerDep, SettingsDep
from refine_server.server.http.disconnect import CLIENT_CLOSED_REQUEST, unless_gone
from refine_server.server.http.errors import as_api_error
from refine_server.ttt.interface.config import SamplingConfig
from refine_server.ttt.interface.events import Event
from refine_server.ttt.interface.requests import CompletionRequest, Prompt


@dataclass(frozen=True)
class Generation:
    """The parts of the app that a request needs."""

    request: Request
    owner: OwnerDep
    engine: EngineDep
    adaptations: AdaptationsDep
    settings: SettingsDep

    async def respond(self, body: GenerationBody, asked: "Asked", formatter: Formatter) -> Response:
        """Do what was asked; closing the connection cancels it at its next step.

        Raises:
            RequestError, ApiError: as long as nothing was sent; a stream tells of later errors.
        """
        events = self._events(body, asked, formatter)
        if not body.stream:
            told = await unless_gone(self.request, _whole(events, formatter))
            return _gone() if told is None else told
        if await unless_gone(self.request, anext(events)) is None:
            return _gone()
        return GenerationStream(events, formatter, self.settings.shutdown_seconds)

    async def _events(
        self, body: GenerationBody, asked: "Asked", formatter: Formatter
    ) -> AsyncGenerator["Event | Admitted", None]:
        async with resolve(
            self.adaptations,
            self.engine.ready().name,
            body.model,
            body.ttt,
            owner=self.owner,
            request_id=self.request.state.request_id,
        ) as resolved:
            formatter.ttt = _report(resolved)
            work = CompletionRequest(
                asked.prompts,
                asked.sampling,
                body.choices,
                asked.logprobs,
                asked.echo,
                resolved.document,
                self.owner,
            )
            async with self.engine.run(
                work,
                request_id=self.request.state.request_id,
                timeout_seconds=self.settings.request_timeout_seconds,
            ) as run:
                yield Admitted()
                async for event in run:
                    yield event


GenerationDep = Annotated[Generation, Depends()]


@dataclass(frozen=True)
class Asked:
    """What differs between completions and chats."""

    prompts: tuple[Prompt, ...]
    sampling: SamplingConfig
    logprobs: int | None
    echo: bool = False


class Admitted:
    """The job waits for its turn: what follows is the model's work."""


class GenerationStream(EventSourceResponse):
    """Chunks as server-sent events; ends with ``[DONE]``, or with an ``error`` event."""

    def __init__(
        self,
        events: AsyncGenerator[Event | Admitted, None],
        formatter: Formatter,
        shutdown_seconds: float,
    ) -> None:
        # At shutdown the engine ends jobs itself, so the stream can still tell how it ended.
        super().__init__(
            _server_sent_events(events, formatter),
            shutdown_event=anyio.Event(),
            shutdown_grace_period=shutdown_seconds + 1.0,
        )
        self.events = events

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            with anyio.CancelScope(shield=True):
                await self.events.aclose()


async def _whole(events: AsyncGenerator[Event | Admitted, None], formatter: Formatter) -> Response:
    async for event in events:
        if not isinstance(event, Admitted):
            formatter.take(event)
    # Thousands of log-probabilities take a while to write, which must not hold up the others.
    return await anyio.to_thread.run_sync(lambda: JSONResponse(formatter.response()))


async def _server_sent_events(
    events: AsyncGenerator[Event | Admitted, None], formatter: Formatter
) -> AsyncIterator[ServerSentEvent]:
    try:
        async for event in events:
            if not isinstance(event, Admitted):
                formatter.take(event)
                for chunk in formatter.chunks(event):
                    yield ServerSentEvent(data=json.dumps(chunk))
        for chunk in formatter.last_chunks():
            yield ServerSentEvent(data=json.dumps(chunk))
        yield ServerSentEvent(data="[DONE]")
    except Exception as error:
        yield ServerSentEvent(event="error", data=as_api_error(error).json)


def usage_in(body: GenerationBody) -> UsageIn:
    """Where the response tells token counts."""
    options = body.stream_options
    if not body.stream:
        return "response"
    if options is None or not options.include_usage:
        return "no_chunk"
    return "every_chunk" if options.continuous_usage_stats else "last_chunk"


def _report(resolved: Resolved) -> TttReport | None:
    if resolved.document is None:
        return None
    assert resolved.adaptation is not None
    document = resolved.document
    return TttReport(
        adaptation=resolved.adaptation,
        adapted=document.report.adapted,
        document_tokens=document.document_tokens,
    )


def _gone() -> Response:
    return Response(status_code=CLIENT_CLOSED_REQUEST)
