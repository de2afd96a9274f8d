"""Routes of OpenAI's API that are not served: the reason, for clients that look for them."""

from fastapi import APIRouter, Request

from refine_server.server.api.openai.compatibility import NO_EMBEDDINGS, NOT_KEPT, ONLY_TEXT
from refine_server.server.http.errors import ApiError

METHODS = ["GET", "POST", "DELETE"]
REASONS = {
    "assistants": "there are no agents; ask with /v1/responses",
    "audio": ONLY_TEXT,
    "conversations": NOT_KEPT,
    "embeddings": NO_EMBEDDINGS,
    "evals": "this server runs no evaluations",
    "fine_tuning": "this server trains no models; adapt to a document with /v1/adaptations",
    "images": ONLY_TEXT,
    "moderations": "this server does not judge what is said",
    "realtime": "requests are answered over HTTP, whole or as a stream of events",
    "threads": NOT_KEPT,
    "uploads": "a file is uploaded at once, with /v1/files",
    "vector_stores": "a request names its document, as a text or as a file; see ttt.document",
    "videos": ONLY_TEXT,
}
"""Why there is no such route, by the first part of its path."""

router = APIRouter(prefix="/v1", include_in_schema=False)


@router.post("/responses/input_tokens")
async def refuse_counting(request: Request) -> None:
    """Say where tokens are counted."""
    raise _refusal(request, "count tokens with /tokenize")


@router.api_route("/responses/{rest:path}", methods=METHODS)
async def refuse_kept_responses(request: Request) -> None:
    """Say that responses are not kept."""
    raise _refusal(request, NOT_KEPT)


async def refuse(request: Request) -> None:
    """Say why a route is not served."""
    raise _refusal(request, REASONS[request.url.path.split("/")[2]])


for _name in REASONS:
    router.add_api_route(f"/{_name}", refuse, methods=METHODS)
    router.add_api_route(f"/{_name}/{{rest:path}}", refuse, methods=METHODS)


def _refusal(request: Request, reason: str) -> ApiError:
    message = f"{request.url.path[:64]} is not supported by this server: {reason}."
    return ApiError(404, message, "not_supported", should_retry=False)
