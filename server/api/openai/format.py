"""Encoders of a completion's events: OpenAI's whole response, or the chunks of its stream."""

import json
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import anyio.to_thread
from pydantic import BaseModel
from typing_extensions import override

from refine_server.server.api.openai.collector import (
    Choice,
    ChoiceCollector,
    ContentCollector,
    TextOffset,
)
from refine_server.server.api.openai.responses import (
    AssistantMessage,
    ChatChoice,
    ChatCompletion,
    ChatLogprobs,
    Completion,
    CompletionChoice,
    CompletionLogprobs,
    CompletionUsage,
    TokenLogprob,
    TopLogprob,
    TttReport,
)
from refine_server.server.engine.events import RunEvent
from refine_server.server.http.respond import ResponseEncoder, StreamEvent
from refine_server.ttt.interface.events import (
    ChoiceEnded,
    CompletionDelta,
    PromptRead,
    ScoredToken,
)

UsageIn = Literal["response", "last_chunk", "every_chunk", "no_chunk"]
"""Where token counts are reported."""

ChoiceChunk = dict[str, Any]
"""One element of a chunk's ``choices``."""


@dataclass(frozen=True, slots=True)
class Delta:
    """What one chunk adds to a choice."""

    text: str = ""
    tokens: Sequence[ScoredToken] = ()
    """Tokens that ``logprobs`` reports."""
    is_first: bool = False
    finish_reason: str | None = None
    """Why the choice ends here; None if it goes on."""


class GenerationEncoder(ChoiceCollector, ResponseEncoder, ABC):
    """What the encoders of completions and of chat completions have in common.

    Args:
        id: the response's id, without the prefix of its kind.
        model: the model that the request named.
        fingerprint: hash of the base weights.
        n: choices for each prompt.
        logprobs: whether log-probabilities are reported.
        usage_in: where token counts are reported.
        ttt: what the document is before anything is read of it; None where there is none.
    """

    id_prefix: ClassVar[str]
    chunk_object: ClassVar[str]
    begins_with_role: ClassVar[bool]
    """Whether the first chunk of a choice names the role, and so is sent without a text, too."""

    def __init__(
        self,
        id: str,
        model: str,
        fingerprint: str,
        *,
        n: int,
        logprobs: bool,
        usage_in: UsageIn,
        ttt: TttReport | None,
    ) -> None:
        super().__init__(n, ttt)
        self.logprobs, self.usage_in = logprobs, usage_in
        self._head = {
            "id": f"{self.id_prefix}-{id}",
            "created": int(time.time()),
            "model": model,
            "system_fingerprint": f"fp_{fingerprint[:16]}",
        }

    @override
    def chunks(self, event: RunEvent) -> Iterator[StreamEvent]:
        for index, delta in self._deltas(event):
            is_end = delta.finish_reason is not None
            ended = index if is_end else None
            yield self._chunk([self._choice_chunk(index, delta)], ended=ended)

    @override
    def last_chunks(self) -> Iterator[StreamEvent]:
        if self.usage_in in ("last_chunk", "every_chunk"):
            yield self._chunk([], usage=self.usage)
        yield StreamEvent(data="[DONE]")

    @override
    async def response(self) -> str:
        # Thousands of log-probabilities take a while, in which the event loop serves others.
        return await anyio.to_thread.run_sync(self._response_json)

    def _response_json(self) -> str:
        whole = self._response(sorted(self._choices.items()))
        return whole.model_dump_json(exclude={"ttt"} if self._ttt is None else None)

    def _deltas(self, event: RunEvent) -> Iterator[tuple[int, Delta]]:
        match event:
            case PromptRead() if event.echo or self.begins_with_role:
                for index in self._choices_of(event):
                    yield index, Delta(self._choices[index].text, event.echo, is_first=True)
            case CompletionDelta():
                tokens = self._choices[event.choice].new_tokens if self.logprobs else ()
                if event.text or tokens:
                    yield event.choice, Delta(event.text, tokens)
            case ChoiceEnded():
                tokens = self._choices[event.choice].new_tokens if self.logprobs else ()
                yield event.choice, Delta(tokens=tokens, finish_reason=event.finish_reason)

    def _chunk(
        self,
        choices: list[ChoiceChunk],
        *,
        ended: int | None = None,
        usage: CompletionUsage | None = None,
    ) -> StreamEvent:
        """Encode a chunk; ``ended`` is the choice that ends with it, if one does."""
        chunk = {**self._head, "object": self.chunk_object, "choices": choices}
        if self.usage_in == "every_chunk":
            usage = self.usage
        if self.usage_in in ("last_chunk", "every_chunk"):
            chunk["usage"] = usage and usage.model_dump()
        if self._ttt is not None:
            chunk["ttt"] = self._ttt.chunk(ended, self.n)
        return StreamEvent(data=json.dumps(chunk))

    @abstractmethod
    def _choice_chunk(self, index: int, delta: Delta) -> ChoiceChunk:
        """Encode a delta of a choice."""

    @abstractmethod
    def _response(self, choices: Sequence[tuple[int, Choice]]) -> BaseModel:
        """Make the whole response from all choices, in order."""


class CompletionEncoder(GenerationEncoder):
    """Encodes ``/v1/completions``. A token that ends a text is in ``logprobs``, not in the text."""

    id_prefix = "cmpl"
    chunk_object = "text_completion"
    begins_with_role = False

    @override
    def _logprob_tokens(self, choice: Choice, event: CompletionDelta) -> Sequence[ScoredToken]:
        return (event.token,)

    @override
    def _choice_chunk(self, index: int, delta: Delta) -> ChoiceChunk:
        is_end = delta.finish_reason is not None
        offset = self._choices[index].text_offset
        logprobs = None if is_end else self._logprobs(delta.tokens, offset)
        return {
            "index": index,
            "text": delta.text,
            "logprobs": logprobs and logprobs.model_dump(),
            "finish_reason": delta.finish_reason,
        }

    @override
    def _response(self, choices: Sequence[tuple[int, Choice]]) -> Completion:
        whole = [
            CompletionChoice(
                index=index,
                text=choice.text,
                logprobs=self._logprobs(choice.tokens, TextOffset()),
                finish_reason=choice.finish_reason,
            )
            for index, choice in choices
        ]
        return Completion(**self._head, choices=whole, usage=self.usage, ttt=self._document_report)

    def _logprobs(
        self, tokens: Sequence[ScoredToken], offset: TextOffset
    ) -> CompletionLogprobs | None:
        if not self.logprobs:
            return None
        return CompletionLogprobs(
            tokens=[token.text for token in tokens],
            token_logprobs=[token.log_prob for token in tokens],
            top_logprobs=[_top_logprobs(token) for token in tokens],
            text_offset=[offset.advance(token) for token in tokens],
        )


def _top_logprobs(token: ScoredToken) -> dict[str, float] | None:
    """Return the most likely tokens and the token itself, which clients expect among them."""
    if token.log_prob is None:
        return None
    by_text: dict[str, float] = {}
    for other in (*token.top, token):
        assert other.log_prob is not None
        by_text.setdefault(other.text, other.log_prob)  # of two with one text, the likelier
    return by_text


class ChatEncoder(ContentCollector, GenerationEncoder):
    """Encodes ``/v1/chat/completions``."""

    id_prefix = "chatcmpl"
    chunk_object = "chat.completion.chunk"
    begins_with_role = True

    @override
    def _choice_chunk(self, index: int, delta: Delta) -> ChoiceChunk:
        content = {"content": delta.text} if delta.finish_reason is None else {}
        return {
            "index": index,
            "delta": {"role": "assistant", **content} if delta.is_first else content,
            "logprobs": chat_logprobs(delta.tokens).model_dump() if delta.tokens else None,
            "finish_reason": delta.finish_reason,
        }

    @override
    def _response(self, choices: Sequence[tuple[int, Choice]]) -> ChatCompletion:
        whole = [
            ChatChoice(
                index=index,
                message=AssistantMessage(content=choice.text),
                logprobs=chat_logprobs(choice.tokens) if self.logprobs else None,
                finish_reason=choice.finish_reason,
            )
            for index, choice in choices
        ]
        return ChatCompletion(
            **self._head, choices=whole, usage=self.usage, ttt=self._document_report
        )


def chat_logprobs(tokens: Sequence[ScoredToken]) -> ChatLogprobs:
    """Encode tokens of an answer with their log-probabilities."""
    return ChatLogprobs(
        content=[
            TokenLogprob(
                **_logprob(token), top_logprobs=[TopLogprob(**_logprob(top)) for top in token.top]
            )
            for token in tokens
        ]
    )


def _logprob(token: ScoredToken) -> dict[str, Any]:
    return {"token": token.text, "logprob": token.log_prob, "bytes": list(token.data)}
