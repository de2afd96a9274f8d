"""How requests of a batch are answered: as the routes answer them, at the lowest priority."""

import json
import logging
import secrets
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ValidationError

from refine_server.server.access.quotas import QuotaKeeper
from refine_server.server.api.answers import answer
from refine_server.server.api.answers_schema import AnswerBody
from refine_server.server.api.openai.requests import ChatBody, CompletionBody
from refine_server.server.api.openai.responses_api.request import ResponsesBody
from refine_server.server.api.openai.responses_api.routes import respond
from refine_server.server.api.openai.routes import chat, complete
from refine_server.server.batches.batch import Batch
from refine_server.server.batches.lines import Answer
from refine_server.server.http.dependencies import Caller, Services
from refine_server.server.http.errors import ApiError, as_api_error
from refine_server.server.http.respond import Exchange, collect
from refine_server.server.http.validation import invalid_body
from refine_server.ttt.interface.errors import RequestError

logger = logging.getLogger(__name__)

PRIORITY = 10
"""Of every request of a batch: the lowest."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Endpoint:
    """A route whose requests a batch may have."""

    body: type[BaseModel]
    submit: Callable[[Any, Services, Caller], AbstractAsyncContextManager[Exchange]]
    """Submits the work of a request."""


ENDPOINTS: Mapping[str, Endpoint] = {
    "/v1/answers": Endpoint(body=AnswerBody, submit=answer),
    "/v1/completions": Endpoint(body=CompletionBody, submit=complete),
    "/v1/chat/completions": Endpoint(body=ChatBody, submit=chat),
    "/v1/responses": Endpoint(body=ResponsesBody, submit=respond),
}


class BatchSender:
    """Sends the requests of batches.

    Args:
        services: do the work.
        quotas: are charged for each request.
    """

    def __init__(self, services: Services, quotas: QuotaKeeper) -> None:
        self._services, self._quotas = services, quotas

    async def send(self, batch: Batch, body: dict[str, object]) -> Answer:
        """Return the answer to a request of a batch."""
        request_id = f"req-{secrets.token_hex(8)}"
        caller = Caller(
            owner=batch.owner,
            request_id=request_id,
            priority=PRIORITY,
            timeout_seconds=max(batch.expires_at - time.time(), 1.0),
        )
        try:
            self._quotas.take_request(batch.owner)
            content = await self._answer(ENDPOINTS[batch.endpoint], body, caller)
        except Exception as error:
            if not isinstance(error, ApiError | RequestError):
                logger.exception("request %s of %s failed", request_id, batch.id)
            failure = as_api_error(error)
            return Answer(
                status=failure.status_code,
                content=json.dumps(failure.body.model_dump()),
                request_id=request_id,
                code=failure.body.error.code,
                retry_after=failure.retry_after,
            )
        return Answer(status=200, content=content, request_id=request_id)

    async def _answer(self, endpoint: Endpoint, body: dict[str, object], caller: Caller) -> str:
        try:
            parsed = endpoint.body.model_validate(body)
        except ValidationError as error:
            located = [{**found, "loc": ("body", *found["loc"])} for found in error.errors()]
            raise invalid_body(located, body) from None
        if getattr(parsed, "stream", None):
            message = "stream: a batch has whole responses"
            raise RequestError(message, "stream", "invalid_value")
        return await collect(endpoint.submit(parsed, self._services, caller))
