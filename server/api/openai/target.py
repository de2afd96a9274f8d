"""What a request's ``model`` and ``ttt`` mean: the base model, a document, or an adaptation."""

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from http import HTTPStatus
from typing import TYPE_CHECKING

from refine_server.server.adaptations.ids import is_adaptation_id
from refine_server.server.adaptations.registry import Adaptations
from refine_server.server.api.fields import require_model
from refine_server.server.api.openai.generation import GenerationBody, TttOptions
from refine_server.server.api.openai.responses import TttReport
from refine_server.server.engine.backend.protocol import Backend
from refine_server.server.engine.run import Run
from refine_server.server.files.file import File
from refine_server.server.files.registry import Files
from refine_server.server.http.dependencies import Caller, Services
from refine_server.server.http.errors import ApiError
from refine_server.server.http.request_log import RequestLog
from refine_server.ttt.interface.errors import RequestError
from refine_server.ttt.interface.evidence import Evidence, OnOverflow, ReadContext
from refine_server.ttt.interface.requests import (
    DEFAULT_OVERFLOW,
    AdaptRequest,
    CompletionRequest,
    default_context,
)

if TYPE_CHECKING:  # it imports torch, which `--help` should not wait for
    from refine_server.ttt.kept import Kept


@dataclass(frozen=True, kw_only=True, slots=True)
class Target:
    """What answers a request: the base model, where there is neither text nor adaptation."""

    kept: "Kept | None" = None
    """The adaptation that answers, if one does."""
    document: str | None = None
    """The text of the document, if it is known."""
    file: File | None = None
    """The file that has the document, if it is one."""
    context: ReadContext = "document"
    evidence: Evidence | None = None
    on_overflow: OnOverflow = DEFAULT_OVERFLOW
    report: TttReport | None = None
    """What the response says of it before anything is read; None for the base model alone."""

    def of(self, work: CompletionRequest, owner: str) -> CompletionRequest:
        """Return an owner's work on the target."""
        kept = self.kept
        work = replace(
            work,
            document=self.document,
            context=self.context,
            evidence=self.evidence,
            on_overflow=self.on_overflow,
            owner=owner,
            pages=() if self.file is None else self.file.page_starts,
        )
        if kept is None:
            return work
        if kept.kind == "document":
            return replace(work, adapted=kept)
        return replace(work, kept=kept, document=kept.document, pages=kept.pages)


@asynccontextmanager
async def open_target(
    body: GenerationBody,
    *,
    served_model: str,
    adaptations: Adaptations,
    files: Files,
    owner: str,
    request_id: str,
    session: str | None = None,
) -> AsyncIterator[Target]:
    """Find what answers a request, and keep it in memory meanwhile.

    A document is adapted to as a resource, so that the next request with it reuses the adaptation.

    Args:
        body: the request.
        served_model: the base model's name.
        adaptations: finds or makes the adaptation.
        files: has the document, where it is a file.
        owner: may use the adaptation.
        request_id: the HTTP request.
        session: the session of the document, for the id of a new adaptation.

    Raises:
        RequestError: if the document cannot be served.
        ApiError: if there is no such model, or the adaptation fails or does not fit into memory.
    """
    ttt, model, named = body.ttt or TttOptions(), body.model, body.document()
    adaptation_id = model if model is not None and is_adaptation_id(model) else None
    if adaptation_id is None:
        require_model(model, served_model)
    elif named is not None:
        message = f"{named.param}: cannot be combined with a model that is an adaptation"
        raise ApiError(422, message, "invalid_value", param=named.param)
    if named is None and "adapt" in ttt.model_fields_set:
        raise _unfit("adapt", "requires document")
    context = ttt.context or body.default_context
    if ttt.context is None and ttt.evidence is not None:
        context = default_context(ttt.evidence)
    on_overflow = ttt.on_overflow or DEFAULT_OVERFLOW
    read = Target(context=context, evidence=ttt.evidence, on_overflow=on_overflow)
    if named is not None:
        found = await named.read(files, owner)
        read = replace(read, document=found.text, file=found.file)
        if ttt.adapt.objective == "none":
            report = TttReport(
                adaptation=None, answered_by="base", document_tokens=0, overflow=None
            )
            yield replace(read, report=report)
            return
        on_overflow = ttt.on_overflow or "truncate_middle"
        if on_overflow == "passages":
            raise _unfit("on_overflow", "passages are chosen by a query, which adapt has none of")
        work = AdaptRequest(
            found.text, ttt.adapt, owner, on_overflow=on_overflow, pages=found.pages
        )
        if ttt.adapt.on.kind == "evidence":
            work = replace(work, queries=body.expected_queries(), evidence=ttt.evidence)
        elif context == "passages":
            raise _unfit("context", "passages cannot be combined with an adaptation to all of it")
        made = await adaptations.create(work, request_id=request_id, session=session)
        adaptation_id = made.id
    if adaptation_id is None:
        if ttt.context is not None or ttt.evidence is not None:
            field = "evidence" if ttt.context is None else "context"
            raise _unfit(field, "requires document, or a model that is an adaptation")
        yield Target()
        return
    await _require_adaptation(adaptation_id, adaptations, owner)
    async with adaptations.use(owner, adaptation_id) as kept:
        report = TttReport(
            adaptation=adaptation_id,
            answered_by=kept.report.answered_by,
            kept_base_reason=kept.report.kept_base_reason,
            document_tokens=kept.document_tokens if kept.kind == "document" else 0,
            overflow=kept.overflow,
        )
        if kept.kind == "document":
            read = _read_adapted(read, ttt)
        yield replace(read, kept=kept, report=report)


def _read_adapted(read: Target, ttt: TttOptions) -> Target:
    """Return what is read of a document that has a state of its own.

    Raises:
        ApiError: it is to be read in another way, but its text is not known.
    """
    if read.document is None:
        for field, asks in (("context", ttt.context), ("evidence", ttt.evidence)):
            if asks is not None and asks != "document":
                raise _unfit(field, "this adaptation keeps no text of its document")
        return Target()
    is_searched = read.context != "document" or ttt.evidence is not None
    return read if is_searched else Target()


@asynccontextmanager
async def submit(
    body: GenerationBody, work: CompletionRequest, services: Services, caller: Caller
) -> AsyncIterator[tuple[Run, Target, Backend]]:
    """Submit the work of a request to what ``model`` and ``ttt`` mean.

    Raises:
        RequestError: the request cannot be served as written; ``param`` is a field of it.
        ApiError: the server is not ready, or what ``open_target`` raises.
    """
    backend = services.engine.ready()
    with own_params(body):
        async with (
            open_target(
                body,
                served_model=backend.name,
                adaptations=services.adaptations,
                files=services.files,
                owner=caller.owner,
                request_id=caller.request_id,
                session=caller.session,
            ) as target,
            services.engine.run(
                target.of(work, caller.owner),
                request_id=caller.request_id,
                timeout_seconds=caller.timeout_seconds or services.settings.request_timeout_seconds,
                priority=caller.priority or 0,
            ) as run,
        ):
            _describe(caller.log, backend.name, target.report)
            yield run, target, backend


def _describe(log: RequestLog, model: str, report: TttReport | None) -> None:
    """Record what answers a request; what no document is told of is the base model."""
    if report is None:
        log.describe(model=model, answered_by="base")
        return
    log.describe(
        model=model,
        adaptation=report.adaptation,
        answered_by=report.answered_by,
        kept_base_reason=report.kept_base_reason,
    )


@contextmanager
def own_params(body: GenerationBody) -> Iterator[None]:
    """Name fields as the request does, in errors of the work that it is made of."""
    try:
        yield
    except RequestError as error:
        field = error.param.partition(".")[0]
        if field == "document" and (named := body.document()) is not None:
            message = str(error).removeprefix("document")
            raise RequestError(f"{named.field}{message}", named.field, error.code) from None
        if field in TttOptions.model_fields:
            raise RequestError(str(error), f"ttt.{error.param}", error.code) from None
        if field == "queries":
            raise RequestError(str(error), body.prompt_field, error.code) from None
        if error.param in ("messages", "prompt"):  # what a request's turns or texts become
            message = body.prompt_field + str(error).removeprefix(field)
            raise RequestError(message, body.prompt_field, error.code) from None
        raise


def _unfit(field: str, reason: str) -> ApiError:
    param = f"ttt.{field}"
    return ApiError(422, f"{param}: {reason}", "invalid_value", param=param)


async def _require_adaptation(adaptation_id: str, adaptations: Adaptations, owner: str) -> None:
    """Raise 404 for an unknown adaptation as for an unknown model."""
    try:
        await adaptations.get(owner, adaptation_id)
    except ApiError as error:
        if error.status_code != HTTPStatus.NOT_FOUND:
            raise
        message = f"This server has no model {adaptation_id!r}."
        raise ApiError(404, message, "model_not_found", param="model") from None
