"""Parts of the app that routes depend on.

The functions are ``async`` because FastAPI calls others in a thread, which takes half a millisecond
for each request.
"""

from typing import Annotated

from fastapi import Depends, Request

from refine_server.server.adaptations.registry import Adaptations
from refine_server.server.engine.engine import Engine
from refine_server.server.files.registry import Files
from refine_server.server.metrics import Metrics
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


async def _files(request: Request) -> Files:
    files: Files = request.app.state.files
    return files


async def _owner(request: Request) -> str:
    owner: str = getattr(request.state, "owner", LOCAL)
    return owner


AdaptationsDep = Annotated[Adaptations, Depends(_adaptations)]
FilesDep = Annotated[Files, Depends(_files)]
OwnerDep = Annotated[str, Depends(_owner)]
EngineDep = Annotated[Engine, Depends(_engine)]
MetricsDep = Annotated[Metrics, Depends(_metrics)]
SettingsDep = Annotated[Settings, Depends(_settings)]
