"""The tokenizer over HTTP, as vLLM serves it and lm-evaluation-harness uses it."""

from typing import TYPE_CHECKING

from fastapi import APIRouter, Request

from refine_server.server.api.fields import require_model
from refine_server.server.api.openai.requests import DetokenizeBody, TokenizeBody
from refine_server.server.api.openai.responses import Detokenized, TokenizerInfo, Tokens
from refine_server.server.http.connections import cancel_on_disconnect
from refine_server.server.http.dependencies import EngineDep, SettingsDep
from refine_server.server.http.errors import documented
from refine_server.server.http.json_body import JsonRoute
from refine_server.ttt.interface.errors import TOO_LONG, RequestError
from refine_server.ttt.interface.requests import Limits
from refine_server.ttt.programs.encode import require_known

if TYPE_CHECKING:  # it imports torch, which `--help` should not wait for
    from refine_server.ttt.decoding.prompts.prompt import PromptTemplate

router = APIRouter(tags=["tokenizer"], route_class=JsonRoute)


@router.post("/tokenize", responses=documented(400, 404, 413, 422, 503))
async def tokenize(
    body: TokenizeBody, request: Request, engine: EngineDep, settings: SettingsDep
) -> Tokens:
    """Encode a text, or a conversation up to where the assistant answers.

    A text longer than the longest prompt of the server is refused; the model may read less.
    """
    backend = engine.ready()
    require_model(body.model, backend.name)
    # Longer texts than the model reads can be counted, to be shortened by the client.
    limits = settings.limits
    messages = [message.to_message() for message in body.messages or ()]
    characters = len(body.prompt or "") + sum(len(message.content) for message in messages)

    def encode(template: "PromptTemplate") -> Tokens:
        if body.prompt is not None:
            special = body.add_special_tokens is not False
            ids = template.encode_prompt(body.prompt, limits, add_special_tokens=special)
        else:
            ids = template.encode_messages(messages, limits)
        param = "messages" if body.prompt is None else "prompt"
        require_known(ids, backend.vocabulary, param, template)
        texts = template.tokenizer.convert_ids_to_tokens(ids) if body.return_token_strs else None
        longest = backend.limits.sequence_tokens
        return Tokens(count=len(ids), max_model_len=longest, tokens=ids, token_strs=texts)

    async with cancel_on_disconnect(request.receive):
        return await engine.with_tokenizer(encode, characters=characters)


@router.post("/detokenize", responses=documented(400, 404, 413, 422, 503))
async def detokenize(
    body: DetokenizeBody, request: Request, engine: EngineDep, settings: SettingsDep
) -> Detokenized:
    """Decode tokens into their text, control tokens included.

    More tokens than the longest prompt has are refused.
    """
    require_model(body.model, engine.ready().name)
    _require_length(body.tokens, settings.limits)

    def decode(template: "PromptTemplate") -> Detokenized:
        size = len(template.tokenizer)
        unknown = next((id for id in body.tokens if id >= size), None)
        if unknown is not None:
            message = f"tokens: {unknown} is not in the vocabulary, 0 to {size - 1}"
            raise RequestError(message, "tokens", "unknown_token")
        return Detokenized(prompt=template.tokenizer.decode(body.tokens))

    async with cancel_on_disconnect(request.receive):
        return await engine.with_tokenizer(decode, characters=len(body.tokens))


@router.get("/tokenizer_info", responses=documented(503))
async def tokenizer_info(engine: EngineDep) -> TokenizerInfo:
    """Describe the special tokens and the chat template."""
    limits = engine.ready().limits

    def describe(template: "PromptTemplate") -> TokenizerInfo:
        tokenizer = template.tokenizer
        return TokenizerInfo(
            tokenizer_class=type(tokenizer).__name__,
            bos_token=tokenizer.bos_token,
            eos_token=tokenizer.eos_token,
            pad_token=tokenizer.pad_token,
            unk_token=tokenizer.unk_token,
            chat_template=tokenizer.chat_template if template.is_chat else None,
            model_max_length=limits.sequence_tokens,
        )

    return await engine.with_tokenizer(describe, characters=0)


def _require_length(tokens: list[int], limits: Limits) -> None:
    if len(tokens) > limits.prompt_tokens:
        message = f"tokens: {len(tokens)} tokens; at most {limits.prompt_tokens} are accepted"
        raise RequestError(message, "tokens", TOO_LONG)
