"""Which models can be asked."""

from fastapi import APIRouter, Request

from refine_server.server.dependencies import EngineDep
from refine_server.server.errors import documented
from refine_server.server.schemas import Model, ModelList

router = APIRouter(tags=["models"])


@router.get("/v1/models", responses=documented(503))
async def list_models(request: Request, engine: EngineDep) -> ModelList:
    """The served model, in OpenAI's list form."""
    backend = engine.ready()
    created: int = request.app.state.started
    model = Model(
        id=backend.name,
        created=created,
        family=backend.family,
        parameters=backend.parameters,
        fingerprint=backend.fingerprint,
    )
    return ModelList(data=[model])
