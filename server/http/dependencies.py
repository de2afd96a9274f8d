"""Parts of the app that routes depend on.

The functions are ``async`` because FastAPI calls others in a thread, which takes half a millisecond
for each request.
"""

import time
from dataclasses import dataclass, field
from typing import Annotated

from fastapi import Depends, Request

from refine_server.server.adaptations.registry import Adaptations
from refine_server.server.batches.registry import Batches
from refine_server.server.engine.engine import Engine
from refine_server.server.files.conversion.converter import Converter
from refine_server.server.files.registry import Files
from refine_server.server.http.request_log import RequestLog
from refine_server.server.metrics.declarations import Metrics
from refine_server.server.settings import Settings
from refine_server.ttt.interface.requests import LOCAL


async def _engine(request: Request) -> Engine:
    engine: Engine = request.app.state.engine
    return engine


async def _metrics(request: Request) -> Metrics:
    metrics: Metrics = request.app.state.metrics
    return metrics


async def _settings(request: Request) -> Settings:
    settings: Settings = request.app.state.settings
    return settings


async def _adaptations(request: Request) -> Adaptations:
    adaptations: Adaptations = request.app.state.adaptations
    return adaptations


async def _batches(request: Request) -> Batches:
    batches: Batches = request.app.state.batches
    return batches


async def _files(request: Request) -> Files:
    files: Files = request.app.state.files
    return files


async def _converter(request: Request) -> Converter:
    converter: Converter = request.app.state.converter
    return converter


async def _owner(request: Request) -> str:
    owner: str = getattr(request.state, "owner", LOCAL)
    return owner


async def _session(request: Request) -> str | None:
    return request.headers.get("x-session-id")


async def _caller(
    request: Request,
    owner: Annotated[str, Depends(_owner)],
    session: Annotated[str | None, Depends(_session)],
) -> "Caller":
    return Caller(
        owner=owner,
        request_id=request.state.request_id,
        session=session,
        log=RequestLog.of(request.scope),
        arrived=request.state.arrived,
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Caller:
    """Who asks for work."""

    owner: str
    request_id: str
    """The HTTP request, for the log."""
    session: str | None = None
    """The session of its document, as the client or the ingress of replicas computed it."""
    log: RequestLog = field(default_factory=RequestLog)
    """What its line in the log says."""
    arrived: float = field(default_factory=time.monotonic)
    """When the request arrived, in monotonic seconds."""
    priority: int | None = None
    """The priority of all its work; None: what the request says."""
    timeout_seconds: float | None = None
    """The time limit of all its work; None: the server's."""


AdaptationsDep = Annotated[Adaptations, Depends(_adaptations)]
BatchesDep = Annotated[Batches, Depends(_batches)]
FilesDep = Annotated[Files, Depends(_files)]
ConverterDep = Annotated[Converter, Depends(_converter)]
OwnerDep = Annotated[str, Depends(_owner)]
SessionDep = Annotated[str | None, Depends(_session)]
EngineDep = Annotated[Engine, Depends(_engine)]
MetricsDep = Annotated[Metrics, Depends(_metrics)]
SettingsDep = Annotated[Settings, Depends(_settings)]
CallerDep = Annotated[Caller, Depends(_caller)]


@dataclass(frozen=True, kw_only=True)
class Services:
    """The parts of the app that do a request's work."""

    engine: EngineDep
    adaptations: AdaptationsDep
    files: FilesDep
    settings: SettingsDep


ServicesDep = Annotated[Services, Depends()]
