"""For those who run the server: health, metrics, version."""

from importlib.metadata import version

from fastapi import APIRouter
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.responses import Response

from refine_server.server.api.answers_schema import Health, Version
from refine_server.server.http.dependencies import AdaptationsDep, EngineDep, MetricsDep
from refine_server.server.http.errors import documented, unavailable

router = APIRouter(tags=["operations"])


@router.get("/health/live")
async def live() -> Health:
    """The process answers."""
    return Health(status="live")


@router.get("/health/ready", responses=documented(503))
async def ready(engine: EngineDep, adaptations: AdaptationsDep) -> Health:
    """The model is loaded, has passed its self-check, and the engine makes progress."""
    engine.ready()
    adaptations.require_open()
    return Health(status="ready")


@router.post("/health/verify", responses=documented(500, 503))
async def verify(engine: EngineDep) -> Health:
    """The base weights are, bit for bit, what was loaded. If not, nothing is served any more."""
    if not await engine.verify():
        raise unavailable("The base weights have changed.", "isolation_violated")
    return Health(status="intact")


@router.get(
    "/metrics",
    response_class=Response,
    responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
)
async def metrics(metrics: MetricsDep) -> Response:
    """Prometheus metrics."""
    return Response(
        generate_latest(metrics.registry), headers={"content-type": CONTENT_TYPE_LATEST}
    )


@router.get("/version")
async def read_version() -> Version:
    """Which software answers."""
    return Version(version=version("refine-server"))
