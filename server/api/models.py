"""The models that requests can name: the served one, and its adaptations."""

from typing import Annotated, Literal

from fastapi import APIRouter, Path, Request
from pydantic import BaseModel, Field

from refine_server.server.adaptations.adaptation import Adaptation, Status
from refine_server.server.http.dependencies import AdaptationsDep, EngineDep, OwnerDep
from refine_server.server.http.errors import ApiError, documented
from refine_server.ttt.interface.requests import Limits, PromptForm

router = APIRouter(prefix="/v1/models", tags=["models"])

ModelId = Annotated[str, Path(max_length=512, description="The model's id, as it is listed.")]


class Model(BaseModel):
    """A model that can be used, in OpenAI's format with a few more fields."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: Literal["refine-server"] = "refine-server"
    family: str
    parameters: int
    fingerprint: str = Field(description="Hash of the base weights.")
    prompt_form: PromptForm = Field(
        description="How documents, queries and messages become a prompt: by the tokenizer's chat "
        "template (chat), or as plain text (plain)."
    )
    max_model_len: int = Field(
        description="The longest prompt and its answer together, in tokens (as vLLM): the server's "
        "limits, or what the model was trained for where that is less."
    )
    context_length: int | None = Field(
        description="The longest sequence, in tokens, that the model was trained for; null where "
        "it reads sequences of any length."
    )
    parent: str | None = Field(None, description="For an adaptation: the model that was adapted.")


class ModelList(BaseModel):
    """The models that can be used."""

    object: Literal["list"] = "list"
    data: list[Model]


@router.get("", responses=documented(503))
async def list_models(
    request: Request,
    owner: OwnerDep,
    engine: EngineDep,
    adaptations: AdaptationsDep,
) -> ModelList:
    """List the served model and the caller's adaptations that are ready, in OpenAI's form."""
    backend = engine.ready()
    adaptations.require_open()
    served = Model(
        id=backend.name,
        created=request.app.state.started,
        family=backend.family,
        parameters=backend.parameters,
        prompt_form=backend.prompt_form,
        max_model_len=backend.limits.sequence_tokens,
        context_length=backend.limits.context_length,
        fingerprint=backend.fingerprint,
    )
    ready = [a for a in await adaptations.list(owner) if a.status is Status.READY]
    return ModelList(data=[served, *(_adapted(served, a, backend.limits) for a in ready)])


@router.get("/{model:path}", responses=documented(404, 422, 503))
async def get_model(
    model: ModelId,
    request: Request,
    owner: OwnerDep,
    engine: EngineDep,
    adaptations: AdaptationsDep,
) -> Model:
    """Show one of the listed models."""
    listed = await list_models(request, owner, engine, adaptations)
    for candidate in listed.data:
        if candidate.id == model:
            return candidate
    raise ApiError(404, f"This server has no model {model!r}.", "model_not_found", param="model")


def _adapted(served: Model, adaptation: Adaptation, limits: Limits) -> Model:
    left = limits.beside(adaptation.document_tokens or 0, 0)
    return served.model_copy(
        update={
            "id": adaptation.id,
            "created": int(adaptation.created_at),
            "parent": served.id,
            "max_model_len": limits.query_tokens if left is None else left,
        }
    )
