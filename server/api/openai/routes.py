"""Completions and chat completions, as clients of OpenAI's API know them."""

import secrets
from typing import Any

from fastapi import APIRouter
from pydantic import BaseModel
from starlette.responses import Response

from refine_server.server.api.openai.format import ChatFormatter, CompletionFormatter, Formatter
from refine_server.server.api.openai.generation import Asked, Generation, GenerationDep, usage_in
from refine_server.server.api.openai.requests import ChatBody, CompletionBody, GenerationBody
from refine_server.server.api.openai.responses import ChatCompletion, Completion
from refine_server.server.http.errors import documented
from refine_server.ttt.interface.requests import Conversation

router = APIRouter(prefix="/v1", tags=["openai"])


def _documented(whole: type[BaseModel]) -> dict[int | str, dict[str, Any]]:
    stream = {
        # As FastAPI itself describes one event of a stream (OpenAPI 3.2).
        "itemSchema": {
            "type": "object",
            "properties": {
                "event": {"type": "string", "enum": ["message", "error"]},
                "data": {"type": "string"},
            },
            "required": ["data"],
        }
    }
    answer = {
        "model": whole,
        "content": {"text/event-stream": stream},
        "description": "The whole. With `stream`, server-sent events whose data are chunks, "
        "`[DONE]` at the end, or an `error` event instead of it.",
    }
    return {200: answer, **documented(400, 404, 409, 413, 422, 429, 500, 503, 504)}


@router.post("/completions", responses=_documented(Completion), response_model=None)
async def create_completion(body: CompletionBody, generation: GenerationDep) -> Response:
    """Continue prompts as they are.

    With `ttt.document`, or an adaptation's id as `model`, each continues the document that was
    adapted to, under its fast weights; otherwise the base model begins anew.
    """
    prompts = tuple(p if isinstance(p, str) else tuple(p) for p in body.prompt)
    sampling = body.to_sampling(generation.settings.max_tokens)
    asked = Asked(prompts, sampling, body.logprobs, bool(body.echo))
    formatter = _formatter(CompletionFormatter, body, generation, body.logprobs is not None)
    return await generation.respond(body, asked, formatter)


@router.post("/chat/completions", responses=_documented(ChatCompletion), response_model=None)
async def create_chat_completion(body: ChatBody, generation: GenerationDep) -> Response:
    """Answer a conversation.

    With `ttt.document`, or an adaptation's id as `model`, the messages follow the document that was
    adapted to, as the query of `/v1/answers` does; otherwise the base model answers.
    """
    prompt = Conversation(tuple(message.to_message() for message in body.messages))
    sampling = body.to_sampling(generation.settings.max_tokens)
    asked = Asked((prompt,), sampling, (body.top_logprobs or 0) if body.logprobs else None)
    formatter = _formatter(ChatFormatter, body, generation, bool(body.logprobs))
    return await generation.respond(body, asked, formatter)


def _formatter(
    kind: type[Formatter], body: GenerationBody, generation: Generation, logprobs: bool
) -> Formatter:
    backend = generation.engine.ready()
    return kind(
        secrets.token_hex(16),
        body.model or backend.name,
        backend.fingerprint,
        n=body.choices,
        logprobs=logprobs,
        usage_in=usage_in(body),
    )
