"""What a request's ``model`` and ``ttt`` mean: the base model, a document, or an adaptation."""

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from http import HTTPStatus
from typing import TYPE_CHECKING

from refine_server.server.adaptations.adaptation import is_adaptation_id
from refine_server.server.adaptations.registry import Adaptations
from refine_server.server.api.fields import require_model
from refine_server.server.api.openai.requests import GenerationBody, TttOptions
from refine_server.server.api.openai.responses import TttReport
from refine_server.server.http.errors import ApiError
from refine_server.ttt.interface.errors import RequestError
from refine_server.ttt.interface.evidence import ContextStrategy, Evidence
from refine_server.ttt.interface.requests import (
    DEFAULT_CONTEXT,
    AdaptRequest,
    CompletionRequest,
)

if TYPE_CHECKING:  # it imports torch, which `--help` should not wait for
    from refine_server.ttt.document import AdaptedDocument


@dataclass(frozen=True, kw_only=True, slots=True)
class Target:
    """What answers a request: the base model, where there is neither text nor adaptation."""

    adapted: "AdaptedDocument | None" = None
    document: str | None = None
    """The text of the document, if it is known."""
    context: ContextStrategy = "document"
    evidence: Evidence | None = None
    report: TttReport | None = None
    """What the response says of it before anything is read; None for the base model alone."""

    def of(self, work: CompletionRequest, owner: str) -> CompletionRequest:
        """Return an owner's work on the target."""
        return replace(
            work,
            adapted=self.adapted,
            document=self.document,
            context=self.context,
            evidence=self.evidence,
            owner=owner,
        )


@asynccontextmanager
async def open_target(
    body: GenerationBody,
    *,
    served_model: str,
    adaptations: Adaptations,
    owner: str,
    request_id: str,
) -> AsyncIterator[Target]:
    """Find what answers a request, and keep it in memory meanwhile.

    A document is adapted to as a resource, so that the next request with it reuses the adaptation.

    Args:
        body: the request.
        served_model: the base model's name.
        adaptations: finds or makes the adaptation.
        owner: may use the adaptation.
        request_id: the HTTP request.

    Raises:
        RequestError: if the document cannot be served.
        ApiError: if there is no such model, or the adaptation fails or does not fit into memory.
    """
    ttt, model = body.ttt or TttOptions(), body.model
    adaptation_id = model if model is not None and is_adaptation_id(model) else None
    if adaptation_id is None:
        require_model(model, served_model)
    elif ttt.document is not None:
        raise _unfit("document", "cannot be combined with a model that is an adaptation")
    context = ttt.context or (body.default_context if ttt.evidence is None else DEFAULT_CONTEXT)
    read = Target(document=ttt.document, context=context, evidence=ttt.evidence)
    if ttt.document is None:
        _refuse_without_text(ttt, is_adaptation=adaptation_id is not None)
        read = Target()
    elif ttt.adapt.objective == "none":
        yield replace(read, report=TttReport(adaptation=None, adapted=False, document_tokens=0))
        return
    else:
        if context == "passages":
            raise _unfit("context", "passages cannot be combined with an adaptation")
        if context == "document" and ttt.evidence is None:
            read = Target()  # nothing is looked for in the text
        work = AdaptRequest(ttt.document, ttt.adapt, owner)
        adaptation_id = (await adaptations.create(work, request_id=request_id)).id
    if adaptation_id is None:
        yield read
        return
    _require_adaptation(adaptation_id, adaptations, owner)
    async with adaptations.use(owner, adaptation_id) as adapted:
        report = TttReport(
            adaptation=adaptation_id,
            adapted=adapted.report.adapted,
            document_tokens=adapted.document_tokens,
        )
        yield replace(read, adapted=adapted, report=report)


@contextmanager
def extension_params() -> Iterator[None]:
    """Name the fields of ``ttt`` as the request does, in errors of the work that they describe."""
    try:
        yield
    except RequestError as error:
        if error.param.partition(".")[0] not in TttOptions.model_fields:
            raise
        raise RequestError(str(error), f"ttt.{error.param}", error.code) from None


def _refuse_without_text(ttt: TttOptions, *, is_adaptation: bool) -> None:
    """Raise 422 if a request looks for evidence, but has no text to find it in."""
    reason = "requires document"
    if is_adaptation:
        reason = "this adaptation keeps no text of its document"
    if ttt.evidence is not None:
        raise _unfit("evidence", reason)
    if ttt.context is not None and not (is_adaptation and ttt.context == "document"):
        raise _unfit("context", reason)


def _unfit(field: str, reason: str) -> ApiError:
    param = f"ttt.{field}"
    return ApiError(422, f"{param}: {reason}", "invalid_value", param=param)


def _require_adaptation(adaptation_id: str, adaptations: Adaptations, owner: str) -> None:
    """Raise 404 for an unknown adaptation as for an unknown model."""
    try:
        adaptations.get(owner, adaptation_id)
    except ApiError as error:
        if error.status != HTTPStatus.NOT_FOUND:
            raise
        message = f"This server has no model {adaptation_id!r}."
        raise ApiError(404, message, "model_not_found", param="model") from None
