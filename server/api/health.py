"""Health, metrics and version, for those who operate the server."""

from importlib.metadata import version
from typing import Literal

from fastapi import APIRouter
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from pydantic import BaseModel
from starlette.responses import Response

from refine_server.server.http.dependencies import AdaptationsDep, EngineDep, MetricsDep
from refine_server.server.http.errors import documented, unavailable

router = APIRouter(tags=["operations"])


class Health(BaseModel):
    """Result of a check that passed."""

    status: Literal["live", "ready", "intact"]


class Version(BaseModel):
    """Name and version of the server's software."""

    name: Literal["refine-server"] = "refine-server"
    version: str


@router.get("/health/live")
async def live() -> Health:
    """Report that the process responds."""
    return Health(status="live")


@router.get("/health/ready", responses=documented(503))
async def ready(engine: EngineDep, adaptations: AdaptationsDep) -> Health:
    """Report that requests are served: the model is loaded and the engine makes progress."""
    engine.ready()
    adaptations.require_open()
    return Health(status="ready")


@router.post("/health/verify", responses=documented(500, 503))
async def verify(engine: EngineDep) -> Health:
    """Verify that the base weights are bitwise as loaded; if not, the server stops serving."""
    if not await engine.verify():
        raise unavailable(
            "The base weights have changed. The server serves no more requests.",
            "isolation_violated",
        )
    return Health(status="intact")


@router.get(
    "/metrics",
    response_class=Response,
    responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
)
async def metrics(metrics: MetricsDep) -> Response:
    """Export metrics in Prometheus' text format."""
    return Response(
        generate_latest(metrics.registry), headers={"content-type": CONTENT_TYPE_LATEST}
    )


@router.get("/version")
async def read_version() -> Version:
    """Show the name and version of the software."""
    return Version(version=version("refine-server"))
