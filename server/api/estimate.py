"""What a request would cost, and whether it would be admitted now, without any of its work."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Body, Request
from pydantic import BaseModel, Field

from refine_server.server.adaptations.adaptation import Adaptation
from refine_server.server.api.adaptations_schema import AdaptationBody
from refine_server.server.api.answers import open_work
from refine_server.server.api.answers_schema import AnswerBody
from refine_server.server.api.documents import read_document
from refine_server.server.api.fields import require_model
from refine_server.server.api.stream_events import LEFT, POSITION, Cost
from refine_server.server.http.connections import cancel_on_disconnect
from refine_server.server.http.dependencies import OwnerDep, Services, ServicesDep
from refine_server.server.http.errors import ApiError, documented
from refine_server.server.http.json_body import JsonRoute
from refine_server.server.http.respond import SCHEMAS
from refine_server.server.http.validation import validated
from refine_server.ttt.interface.requests import AdaptRequest, Work
from refine_server.ttt.programs.encode import EncodedAnswer, EncodedAsk, EncodedWork

router = APIRouter(tags=["answers"], route_class=JsonRoute)


class Refusal(BaseModel):
    """Why a request would be refused now."""

    status: int
    code: str
    message: str
    option: str | None = Field(
        description="The server's option or the request's field that names the limit, if one does."
    )
    retry_after: int | None = Field(description="Seconds after which to try again.")

    @classmethod
    def of(cls, error: ApiError) -> "Refusal":
        """Return an error that a request would get."""
        return cls(
            status=error.status_code,
            code=error.body.error.code,
            message=str(error),
            option=error.option,
            retry_after=error.retry_after,
        )


class EstimateResponse(BaseModel):
    """What a request would cost, and whether it would be admitted now."""

    object: Literal["estimate"] = "estimate"
    model: str
    document_tokens: int | None = Field(
        description="Tokens of what is read of the document; null for a question to an adaptation."
    )
    query_tokens: int | None = Field(
        description="Tokens of the query as it follows the document; null where there is none."
    )
    estimate: Cost
    queue_position: int = Field(description=POSITION)
    seconds_left: float | None = Field(description=LEFT)
    admitted: bool = Field(description="Whether it would be admitted now.")
    refusal: Refusal | None = Field(description="Why it would not be; null if it would.")
    adaptation: str | None = Field(
        description="Id of an equal adaptation that exists: the request would join it and cost "
        "nothing. Null if there is none."
    )


JSON_BODY: dict[str, Any] = {
    "requestBody": {
        "content": {
            "application/json": {
                "schema": {
                    "title": "EstimateRequest",
                    "oneOf": [
                        {"$ref": f"{SCHEMAS}AnswerBody"},
                        {"$ref": f"{SCHEMAS}AdaptationBody"},
                    ],
                }
            }
        }
    }
}
"""Documents the body, which is that of either route."""


@router.post(
    "/v1/estimate",
    openapi_extra=JSON_BODY,
    responses=documented(400, 404, 409, 413, 422, 429, 503),
)
async def estimate_request(
    body: Annotated[dict[str, Any], Body()],
    request: Request,
    services: ServicesDep,
    owner: OwnerDep,
) -> EstimateResponse:
    """Say what a request would cost, and whether it would be admitted now, without its work.

    The body is that of `/v1/answers`, or without a `query` that of `/v1/adaptations`. It is checked
    and tokenised as there, with the same errors; nothing is queued, kept or charged.
    """
    asked: AnswerBody | AdaptationBody
    asked = validated(AnswerBody, body) if "query" in body else validated(AdaptationBody, body)
    engine, adaptations = services.engine, services.adaptations
    model = engine.ready().name
    require_model(asked.model, model)
    longest = services.settings.request_timeout_seconds
    equal: Adaptation | None = None
    refusal: ApiError | None = None
    async with (
        cancel_on_disconnect(request.receive),
        _open_work(asked, services, owner) as work,
    ):
        if isinstance(work, AdaptRequest):
            try:
                equal = adaptations.find_equal(work)
            except ApiError as error:
                refusal = error
        forecast = await engine.forecast(
            work,
            timeout_seconds=min(asked.timeout_seconds or longest, longest),
            priority=asked.priority,
        )
    refusal = None if equal is not None else refusal or forecast.refusal
    document_tokens, query_tokens = _count(forecast.job.work)
    accepted = forecast.accepted
    return EstimateResponse(
        model=model,
        document_tokens=document_tokens,
        query_tokens=query_tokens,
        estimate=Cost.of(forecast.job.estimate),
        queue_position=accepted.queue_position,
        seconds_left=accepted.seconds_left,
        admitted=refusal is None,
        refusal=refusal and Refusal.of(refusal),
        adaptation=equal and equal.id,
    )


@asynccontextmanager
async def _open_work(
    body: AnswerBody | AdaptationBody, services: Services, owner: str
) -> AsyncIterator[Work]:
    """Give the work that a body asks for.

    Raises:
        ApiError: 409, the adaptation that is asked is not ready; an answer would wait for it.
    """
    if isinstance(body, AdaptationBody):
        document = await read_document(body.document, services.files, owner)
        yield body.to_work(document.text, owner, document.pages)
        return
    if body.adaptation is not None:
        kept = await services.adaptations.get(owner, body.adaptation)
        if not kept.status.is_final:
            message = f"The adaptation {kept.id!r} is still being made; its stream says how long."
            raise ApiError(409, message, "adaptation_not_ready", param="adaptation")
    async with open_work(body, services, owner) as work:
        yield work


def _count(work: EncodedWork) -> tuple[int | None, int | None]:
    """Count the tokens of a document and of the query behind it."""
    match work:
        case EncodedAnswer():
            return work.tokens, len(work.query)
        case EncodedAsk():
            return None, len(work.query)
        case _:
            return work.tokens, None
