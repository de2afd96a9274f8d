"""The tokenizer over HTTP, as vLLM serves it and lm-evaluation-harness asks for it."""

from typing import TYPE_CHECKING

from fastapi import APIRouter

from refine_server.server.api.answers_schema import require_model
from refine_server.server.api.openai.requests import DetokenizeBody, TokenizeBody
from refine_server.server.api.openai.responses import Detokenized, TokenizerInfo, Tokens
from refine_server.server.http.dependencies import EngineDep, SettingsDep
from refine_server.server.http.errors import documented
from refine_server.ttt.interface.errors import RequestError

if TYPE_CHECKING:  # it would import torch
    from refine_server.ttt.decoding.prompt import PromptTemplate

router = APIRouter(tags=["tokenizer"])


@router.post("/tokenize", responses=documented(400, 404, 413, 422, 503))
async def tokenize(body: TokenizeBody, engine: EngineDep, settings: SettingsDep) -> Tokens:
    """A text's tokens, or those of a conversation up to where the assistant answers."""
    require_model(body.model, engine.ready().name)
    limits = settings.limits
    messages = [message.to_message() for message in body.messages or []]

    def encode(template: "PromptTemplate") -> Tokens:
        if body.prompt is not None:
            special = body.add_special_tokens is not False
            ids = template.encode_prompt(body.prompt, limits, add_special_tokens=special)
        else:
            ids = template.encode_messages(messages, limits)
        texts = template.tokenizer.convert_ids_to_tokens(ids) if body.return_token_strs else None
        return Tokens(
            count=len(ids), max_model_len=limits.prompt_tokens, tokens=ids, token_strs=texts
        )

    characters = len(body.prompt or "") + sum(len(message.content) for message in messages)
    return await engine.with_tokenizer(encode, characters=characters)


@router.post("/detokenize", responses=documented(400, 404, 413, 422, 503))
async def detokenize(body: DetokenizeBody, engine: EngineDep) -> Detokenized:
    """The text of tokens, control tokens spelled out."""
    require_model(body.model, engine.ready().name)

    def decode(template: "PromptTemplate") -> Detokenized:
        known = len(template.tokenizer)
        unknown = [id for id in body.tokens if id >= known]
        if unknown:
            message = f"tokens: {unknown[0]} is unknown; the tokenizer knows 0 to {known - 1}"
            raise RequestError(message, "tokens", "unknown_token")
        return Detokenized(prompt=template.tokenizer.decode(body.tokens))

    return await engine.with_tokenizer(decode, characters=len(body.tokens))


@router.get("/tokenizer_info", responses=documented(503))
async def tokenizer_info(engine: EngineDep, settings: SettingsDep) -> TokenizerInfo:
    """Special tokens and the chat template."""

    def describe(template: "PromptTemplate") -> TokenizerInfo:
        tokenizer = template.tokenizer
        return TokenizerInfo(
            tokenizer_class=type(tokenizer).__name__,
            bos_token=tokenizer.bos_token,
            eos_token=tokenizer.eos_token,
            pad_token=tokenizer.pad_token,
            unk_token=tokenizer.unk_token,
            chat_template=tokenizer.chat_template if template.is_chat else None,
            model_max_length=settings.limits.prompt_tokens,
        )

    return await engine.with_tokenizer(describe, characters=0)
