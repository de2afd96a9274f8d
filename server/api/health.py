"""Health, metrics and version, for those who operate the server."""

from importlib.metadata import version
from typing import Literal

from fastapi import APIRouter, Request
from prometheus_client.exposition import (
    CONTENT_TYPE_PLAIN_0_0_4,
    choose_encoder,
    generate_latest,
)
from pydantic import BaseModel
from starlette.responses import Response

from refine_server.server.http.dependencies import AdaptationsDep, EngineDep, MetricsDep
from refine_server.server.http.errors import documented, unavailable

router = APIRouter(tags=["operations"])

TEXT = {"schema": {"type": "string"}}


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
    """Report that requests are served: the model is loaded, the engine makes progress, and
    the store of adaptations can be used."""
    engine.ready()
    adaptations.require_open()
    adaptations.require_store()
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
    responses={200: {"content": {"text/plain": TEXT, "application/openmetrics-text": TEXT}}},
)
async def metrics(metrics: MetricsDep, request: Request) -> Response:
    """Export metrics in Prometheus' text format, or as OpenMetrics to those who accept that."""
    try:
        encode, content_type = choose_encoder(request.headers.get("accept", ""))
    except (TypeError, ValueError):  # of a version that is none
        encode, content_type = generate_latest, CONTENT_TYPE_PLAIN_0_0_4
    return Response(encode(metrics.registry), headers={"content-type": content_type})


@router.get("/version")
async def read_version() -> Version:
    """Show the name and version of the software."""
    return Version(version=version("refine-server"))
