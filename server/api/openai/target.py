"""Which model a request of OpenAI's asks for: the base model, or an adaptation."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING

from refine_server.server.adaptations.adaptation import is_adaptation_id
from refine_server.server.adaptations.registry import Adaptations
from refine_server.server.api.answers_schema import require_model
from refine_server.server.api.openai.requests import TttOptions
from refine_server.server.http.errors import ApiError
from refine_server.ttt.interface.config import AdaptConfig
from refine_server.ttt.interface.errors import RequestError
from refine_server.ttt.interface.requests import AdaptRequest

if TYPE_CHECKING:  # it would import torch
    from refine_server.ttt.document import AdaptedDocument


@dataclass(frozen=True)
class Resolved:
    """What answers: the adaptation's id and document, or None for the base model."""

    adaptation: str | None = None
    document: "AdaptedDocument | None" = None


@asynccontextmanager
async def resolve(
    adaptations: Adaptations,
    served: str,
    asked: str | None,
    ttt: TttOptions | None,
    *,
    owner: str,
    request_id: str,
) -> AsyncIterator[Resolved]:
    """What a request's ``model`` and ``ttt`` ask for, kept in memory until the block ends.

    A document is adapted to as a resource, so the same one in the next request costs nothing.

    Raises:
        RequestError: the document cannot be served.
        ApiError: there is no such model, or the adaptation failed or finds no place.
    """
    adaptation = asked if asked is not None and is_adaptation_id(asked) else None
    if adaptation is None:
        require_model(asked, served)
    elif ttt is not None and ttt.document is not None:
        message = "ttt.document: the model is an adaptation already, to a document of its own"
        raise ApiError(422, message, "invalid_value", param="ttt.document")
    if ttt is not None and ttt.document is not None:
        adaptation = await _adapt(adaptations, ttt.document, ttt.adapt, owner, request_id)
    if adaptation is None:
        yield Resolved()
        return
    _require(adaptations, owner, adaptation)
    async with adaptations.use(owner, adaptation) as adapted:
        yield Resolved(adaptation, adapted)


async def _adapt(
    adaptations: Adaptations,
    document: str,
    adapt: AdaptConfig | None,
    owner: str,
    request_id: str,
) -> str:
    try:
        request = AdaptRequest(document, adapt or AdaptConfig(), owner)
        return (await adaptations.create(request, request_id=request_id)).id
    except RequestError as error:
        raise RequestError(str(error), f"ttt.{error.param}", error.code) from None


def _require(adaptations: Adaptations, owner: str, adaptation: str) -> None:
    try:
        adaptations.get(owner, adaptation)
    except ApiError as error:
        if error.status != HTTPStatus.NOT_FOUND:
            raise
        message = f"There is no model {adaptation!r} here."
        raise ApiError(404, message, "model_not_found", param="model") from None
