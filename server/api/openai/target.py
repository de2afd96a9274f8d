"""What a request's ``model`` and ``ttt`` mean: the base model, an adaptation, or to adapt now."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING

from refine_server.server.adaptations.adaptation import is_adaptation_id
from refine_server.server.adaptations.registry import Adaptations
from refine_server.server.api.fields import require_model
from refine_server.server.api.openai.requests import TttOptions
from refine_server.server.api.openai.responses import TttReport
from refine_server.server.http.errors import ApiError
from refine_server.ttt.interface.errors import RequestError
from refine_server.ttt.interface.requests import AdaptRequest

if TYPE_CHECKING:  # it imports torch, which `--help` should not wait for
    from refine_server.ttt.document import AdaptedDocument


@dataclass(frozen=True, slots=True)
class Target:
    """What answers a request: the base model, unless there is an adapted document."""

    document: "AdaptedDocument | None" = None
    report: TttReport | None = None
    """Which adaptation the document is, for the response."""


@asynccontextmanager
async def open_target(
    model: str | None,
    ttt: TttOptions | None,
    *,
    served_model: str,
    adaptations: Adaptations,
    owner: str,
    request_id: str,
) -> AsyncIterator[Target]:
    """Find what answers a request, and keep it in memory meanwhile.

    A document is adapted to as a resource, so that the next request with it reuses the adaptation.

    Args:
        model: the request's ``model``, which may be an adaptation's id.
        ttt: the request's ``ttt``.
        served_model: the base model's name.
        adaptations: finds or makes the adaptation.
        owner: may use the adaptation.
        request_id: the HTTP request.

    Raises:
        RequestError: if the document cannot be served.
        ApiError: if there is no such model, or the adaptation fails or does not fit into memory.
    """
    adaptation_id = model if model is not None and is_adaptation_id(model) else None
    if adaptation_id is None:
        require_model(model, served_model)
    if ttt is not None and ttt.document is not None:
        if adaptation_id is not None:
            message = "ttt.document: cannot be combined with a model that is an adaptation"
            raise ApiError(422, message, "invalid_value", param="ttt.document")
        request = AdaptRequest(ttt.document, ttt.adapt, owner, on_overflow=ttt.on_overflow)
        adaptation_id = await _adapt(request, adaptations, request_id)
    if adaptation_id is None:
        yield Target()
        return
    _require_adaptation(adaptation_id, adaptations, owner)
    async with adaptations.use(owner, adaptation_id) as document:
        report = TttReport(
            adaptation=adaptation_id,
            adapted=document.report.adapted,
            document_tokens=document.document_tokens,
            overflow=document.overflow,
        )
        yield Target(document, report)


async def _adapt(request: AdaptRequest, adaptations: Adaptations, request_id: str) -> str:
    """Start or join an adaptation to the document, and return its id."""
    try:
        return (await adaptations.create(request, request_id=request_id)).id
    except RequestError as error:
        raise RequestError(str(error), f"ttt.{error.param}", error.code) from None


def _require_adaptation(adaptation_id: str, adaptations: Adaptations, owner: str) -> None:
    """Raise 404 for an unknown adaptation as for an unknown model."""
    try:
        adaptations.get(owner, adaptation_id)
    except ApiError as error:
        if error.status_code != HTTPStatus.NOT_FOUND:
            raise
        message = f"This server has no model {adaptation_id!r}."
        raise ApiError(404, message, "model_not_found", param="model") from None
