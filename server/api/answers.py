"""Answer a query from a document: one that this request adapts to, or an adaptation."""

import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Annotated, Any

from fastapi import APIRouter, Body
from starlette.responses import Response
from typing_extensions import override

from refine_server.server.api.answers_schema import (
    ANSWER_EVENTS,
    EXAMPLES,
    AnswerBody,
    AnswerResponse,
    Origin,
    wire_event,
)
from refine_server.server.api.documents import read_document
from refine_server.server.api.fields import require_model
from refine_server.server.engine.events import RunEvent
from refine_server.server.engine.run import Run
from refine_server.server.http.dependencies import Caller, CallerDep, Services, ServicesDep
from refine_server.server.http.errors import ErrorBody, documented
from refine_server.server.http.json_body import JsonRoute
from refine_server.server.http.respond import (
    Exchange,
    ResponseEncoder,
    RunResponse,
    StreamEvent,
    event_stream_docs,
)
from refine_server.ttt.interface.events import AnswerCompleted
from refine_server.ttt.interface.requests import Work

router = APIRouter(tags=["answers"], route_class=JsonRoute)

RESPONSE_DOCS: dict[int | str, dict[str, Any]] = {
    200: {
        "model": AnswerResponse,
        "content": event_stream_docs({**ANSWER_EVENTS, "error": ErrorBody}),
        "description": "The answer. With `stream`, server-sent events: `request.accepted`, how far "
        "the work is (`request.queued`, `document.reading`, `adaptation.started`, "
        "`adaptation.step`, and `request.progress` after two seconds without another event), "
        "`answer.base` (with `compare_base`), `answer.delta`, and at the end `answer.completed`, "
        "whose data is the whole response, or `error`.",
    }
}


class AnswerEncoder(ResponseEncoder):
    """Encodes the events of one answer.

    Args:
        run: the work, whose id and time in the queue are reported.
        model: the served model's name.
        adaptation_id: the adaptation that answers, if it is kept.
        arrived: when the request arrived, in monotonic seconds.
    """

    def __init__(self, run: Run, model: str, adaptation_id: str | None, arrived: float) -> None:
        self._run, self._model, self._adaptation_id = run, model, adaptation_id
        self._arrived = arrived
        self._completed: AnswerCompleted | None = None

    @override
    def add(self, event: RunEvent) -> None:
        if isinstance(event, AnswerCompleted):
            self._completed = event

    @override
    def chunks(self, event: RunEvent) -> Iterator[StreamEvent]:
        encoded = wire_event(event, self._origin)
        if encoded is not None:
            name, data = encoded
            yield StreamEvent(event=name, data=data.model_dump_json())

    @override
    def last_chunks(self) -> Iterator[StreamEvent]:
        return iter(())

    @override
    async def response(self) -> str:
        assert self._completed is not None
        return AnswerResponse.of(self._completed, self._origin).model_dump_json()

    @property
    def _origin(self) -> Origin:
        return Origin(
            job_id=self._run.id,
            model=self._model,
            queue_seconds=self._run.queue_seconds,
            total_seconds=time.monotonic() - self._arrived,
            steps=self._run.steps,
            seconds_left=self._run.seconds_left,
            adaptation_id=self._adaptation_id,
        )


@router.post(
    "/v1/answers",
    responses={**RESPONSE_DOCS, **documented(400, 404, 408, 409, 413, 422, 429, 500, 503, 504)},
    response_model=None,
)
async def create_answer(
    body: Annotated[AnswerBody, Body(openapi_examples=EXAMPLES)],
    services: ServicesDep,
    caller: CallerDep,
) -> Response:
    """Answer a query from a document, or from an adaptation.

    With a `document`, a copy of the fast weights is adapted to it that ends with this request. With
    an `adaptation`, its id, the answer comes from that. Closing the connection cancels the work at
    its next step.
    """
    return RunResponse(
        answer(body, services, caller),
        stream=body.stream,
        shutdown_seconds=services.settings.shutdown_seconds,
    )


@asynccontextmanager
async def answer(body: AnswerBody, services: Services, caller: Caller) -> AsyncIterator[Exchange]:
    """Submit the work of a request.

    Raises:
        RequestError: the request cannot be served as written.
        ApiError: the server is not ready, or the document or the adaptation cannot be used.
    """
    model = services.engine.ready().name
    require_model(body.model, model)
    longest = caller.timeout_seconds or services.settings.request_timeout_seconds
    async with (
        open_work(body, services, caller.owner) as work,
        services.engine.run(
            work,
            request_id=caller.request_id,
            timeout_seconds=min(body.timeout_seconds or longest, longest),
            priority=body.priority if caller.priority is None else caller.priority,
        ) as run,
    ):
        caller.log.describe(model=model, adaptation=body.adaptation)
        yield run, AnswerEncoder(run, model, body.adaptation, caller.arrived)


@asynccontextmanager
async def open_work(body: AnswerBody, services: Services, owner: str) -> AsyncIterator[Work]:
    """Give the work that a request asks for; an adaptation stays in memory meanwhile."""
    sampling = body.sampling(services.settings.max_tokens)
    if body.adaptation is None:
        document = await read_document(body.required_document(), services.files, owner)
        yield body.to_work(document.text, sampling, owner, document.pages)
        return
    async with services.adaptations.use(owner, body.adaptation) as kept:
        yield body.to_question(kept, sampling)
