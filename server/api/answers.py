"""Answer a query from a document: one that this request adapts to, or an adaptation."""

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import APIRouter, Request
from sse_starlette import ServerSentEvent
from starlette.responses import Response
from typing_extensions import override

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
from refine_server.server.http.errors import ApiError, documented
from refine_server.server.http.respond import ResponseEncoder, RunResponse, event_stream_docs
from refine_server.server.settings import Settings
from refine_server.ttt.interface.events import AnswerCompleted, Event
from refine_server.ttt.interface.requests import Work

router = APIRouter(tags=["answers"])

STREAM_EVENTS = ("answer.base", "adaptation.step", "answer.delta", "answer.completed", "error")

RESPONSE_DOCS: dict[int | str, dict[str, Any]] = {
    200: {
        "model": AnswerResponse,
        "content": event_stream_docs(STREAM_EVENTS),
        "description": "The answer. With `stream`, server-sent events: `answer.base` (with "
        "`compare_base`), `adaptation.step`, `answer.delta`, and at the end `answer.completed`, "
        "whose data is the whole response, or `error`.",
    }
}


class AnswerEncoder(ResponseEncoder):
    """Encodes the events of one answer.

    Args:
        run: the work, whose id and time in the queue are reported.
        model: the served model's name.
        adaptation_id: the adaptation that answers, if it is kept.
    """

    def __init__(self, run: Run, model: str, adaptation_id: str | None) -> None:
        self._run, self._model, self._adaptation_id = run, model, adaptation_id
        self._completed: AnswerCompleted | None = None

    @override
    def add(self, event: Event) -> None:
        if isinstance(event, AnswerCompleted):
            self._completed = event

    @override
    def chunks(self, event: Event) -> Iterator[ServerSentEvent]:
        encoded = wire_event(event, self._origin)
        if encoded is not None:
            name, data = encoded
            yield ServerSentEvent(event=name, data=data.model_dump_json())

    @override
    def last_chunks(self) -> Iterator[ServerSentEvent]:
        return iter(())

    @override
    async def response(self) -> str:
        assert self._completed is not None
        return AnswerResponse.of(self._completed, self._origin).model_dump_json()

    @property
    def _origin(self) -> Origin:
        return Origin(self._run.id, self._model, self._run.queue_seconds, self._adaptation_id)


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
    """Answer a query from a document, or from an adaptation.

    With a `document`, a copy of the fast weights is adapted to it that ends with this request. With
    an `adaptation`, its id, the answer comes from that. Closing the connection cancels the work at
    its next step.
    """
    model = engine.ready().name
    require_model(body.model, model)
    if body.max_tokens is not None and body.max_tokens > settings.max_tokens:
        message = f"max_tokens: this server allows at most {settings.max_tokens}"
        raise ApiError(422, message, "invalid_value", param="max_tokens")
    longest = settings.request_timeout_seconds

    @asynccontextmanager
    async def exchange() -> AsyncIterator[tuple[Run, AnswerEncoder]]:
        async with (
            _open_work(body, owner, adaptations, settings) as work,
            engine.run(
                work,
                request_id=request.state.request_id,
                timeout_seconds=min(body.timeout_seconds or longest, longest),
                priority=body.priority,
            ) as run,
        ):
            yield run, AnswerEncoder(run, model, body.adaptation)

    return RunResponse(exchange(), stream=body.stream, shutdown_seconds=settings.shutdown_seconds)


@asynccontextmanager
async def _open_work(
    body: AnswerBody, owner: str, adaptations: Adaptations, settings: Settings
) -> AsyncIterator[Work]:
    """Give the work that a request asks for; an adaptation stays in memory meanwhile."""
    if body.adaptation is None:
        yield body.to_work(settings.max_tokens, owner)
        return
    async with adaptations.use(owner, body.adaptation) as adapted:
        yield body.to_question(adapted, settings.max_tokens, owner)
