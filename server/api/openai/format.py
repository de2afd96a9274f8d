"""From a completion's events to OpenAI's response, or to the chunks of its stream."""

import codecs
import time
from abc import ABC, abstractmethod
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic import BaseModel

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
from refine_server.ttt.interface.events import (
    ChoiceEnded,
    CompletionDelta,
    Event,
    PromptRead,
    ScoredToken,
)

UsageIn = Literal["response", "last_chunk", "every_chunk", "no_chunk"]


@dataclass
class _Choice:
    """A choice so far: its text, the tokens to tell of, and the characters that they make up."""

    text: str = ""
    tokens: list[ScoredToken] = field(default_factory=list)
    finish_reason: str = "length"
    characters: int = 0
    decoder: codecs.IncrementalDecoder = field(
        default_factory=lambda: codecs.getincrementaldecoder("utf-8")("replace")
    )

    def offset(self, token: ScoredToken) -> int:
        """Where the next token starts in the text, in whole characters."""
        start = self.characters
        self.characters += len(self.decoder.decode(token.data))
        return start


class Formatter(ABC):
    """Takes the events of one request, in order.

    Args:
        id: of the response, without what its kind puts before it.
        model: that was asked for.
        fingerprint: of the base weights.
        n: choices for each prompt.
        logprobs: whether log-probabilities are told.
        usage_in: where token counts are told.
    """

    prefix: str
    chunk_object: str

    def __init__(
        self, id: str, model: str, fingerprint: str, *, n: int, logprobs: bool, usage_in: UsageIn
    ) -> None:
        self.n, self.logprobs, self.usage_in = n, logprobs, usage_in
        self.ttt: TttReport | None = None
        self._head = {
            "id": f"{self.prefix}-{id}",
            "created": int(time.time()),
            "model": model,
            "system_fingerprint": f"fp_{fingerprint[:16]}",
        }
        self._choices: defaultdict[int, _Choice] = defaultdict(_Choice)
        self._prompt_tokens = self._completion_tokens = 0

    def take(self, event: Event) -> None:
        """Take the next event."""
        match event:
            case PromptRead():
                self._prompt_tokens += event.tokens
                text = b"".join(token.data for token in event.echo).decode(errors="replace")
                for index in self._choices_of(event):
                    self._choices[index].text = text
                    self._choices[index].tokens += event.echo
            case CompletionDelta():
                self._completion_tokens += 1
                self._choices[event.choice].text += event.text
                self._choices[event.choice].tokens += self._told(event)
            case ChoiceEnded():
                self._choices[event.choice].finish_reason = event.finish_reason

    def chunks(self, event: Event) -> list[dict[str, Any]]:
        """What a stream tells of an event that was taken."""
        match event:
            case PromptRead():
                told = [self._begin(index, event.echo) for index in self._choices_of(event)]
                return [self._chunk(choice) for choice in told if choice is not None]
            case CompletionDelta():
                tokens = self._told(event) if self.logprobs else ()
                if not event.text and not tokens:
                    return []
                return [self._chunk(self._piece(event.choice, event.text, tokens))]
            case ChoiceEnded():
                return [self._chunk(self._end(event))]
            case _:
                return []

    def _choices_of(self, event: PromptRead) -> range:
        return range(event.prompt * self.n, (event.prompt + 1) * self.n)

    def last_chunks(self) -> list[dict[str, Any]]:
        """What a stream tells after the last event."""
        if self.usage_in in ("response", "no_chunk"):
            return []
        return [{**self._chunk(None), "usage": self.usage.model_dump()}]

    def response(self) -> dict[str, Any]:
        """The whole response, after the last event."""
        whole = self._whole(sorted(self._choices.items())).model_dump()
        if self.ttt is None:
            del whole["ttt"]
        return whole

    @property
    def usage(self) -> CompletionUsage:
        """Token counts so far."""
        return CompletionUsage(
            prompt_tokens=self._prompt_tokens,
            completion_tokens=self._completion_tokens,
            total_tokens=self._prompt_tokens + self._completion_tokens,
        )

    def _chunk(self, choice: dict[str, Any] | None) -> dict[str, Any]:
        told = [] if choice is None else [choice]
        chunk = {**self._head, "object": self.chunk_object, "choices": told}
        if self.usage_in == "every_chunk":
            chunk["usage"] = self.usage.model_dump()
        elif self.usage_in == "last_chunk":
            chunk["usage"] = None
        if self.ttt is not None:
            chunk["ttt"] = self.ttt.model_dump()
        return chunk

    @abstractmethod
    def _told(self, event: CompletionDelta) -> tuple[ScoredToken, ...]:
        """The token, if log-probabilities tell of it."""

    @abstractmethod
    def _begin(self, index: int, echo: tuple[ScoredToken, ...]) -> dict[str, Any] | None:
        """What a chunk tells of a choice whose prompt was read."""

    @abstractmethod
    def _piece(self, index: int, text: str, tokens: tuple[ScoredToken, ...]) -> dict[str, Any]:
        """What a chunk tells of more text."""

    @abstractmethod
    def _end(self, event: ChoiceEnded) -> dict[str, Any]:
        """What a chunk tells of a choice that is complete."""

    @abstractmethod
    def _whole(self, choices: list[tuple[int, _Choice]]) -> BaseModel:
        """All choices, in order."""


class CompletionFormatter(Formatter):
    """Of ``/v1/completions``. Tokens that end a text are told of, but not part of it."""

    prefix = "cmpl"
    chunk_object = "text_completion"

    def _told(self, event: CompletionDelta) -> tuple[ScoredToken, ...]:
        return (event.token,)

    def _begin(self, index: int, echo: tuple[ScoredToken, ...]) -> dict[str, Any] | None:
        return self._piece(index, self._choices[index].text, echo) if echo else None

    def _piece(self, index: int, text: str, tokens: tuple[ScoredToken, ...]) -> dict[str, Any]:
        told = self._logprobs(self._choices[index], list(tokens))
        logprobs = None if told is None else told.model_dump()
        return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": None}

    def _end(self, event: ChoiceEnded) -> dict[str, Any]:
        end = {"index": event.choice, "text": "", "logprobs": None}
        return {**end, "finish_reason": event.finish_reason}

    def _whole(self, choices: list[tuple[int, _Choice]]) -> BaseModel:
        told = [
            CompletionChoice(
                index=index,
                text=choice.text,
                logprobs=self._logprobs(_Choice(), choice.tokens),
                finish_reason=choice.finish_reason,
            )
            for index, choice in choices
        ]
        return Completion(**self._head, choices=told, usage=self.usage, ttt=self.ttt)

    def _logprobs(self, at: _Choice, tokens: list[ScoredToken]) -> CompletionLogprobs | None:
        """Of tokens that come next in ``at``'s text."""
        if not self.logprobs:
            return None
        return CompletionLogprobs(
            tokens=[token.text for token in tokens],
            token_logprobs=[token.log_prob for token in tokens],
            top_logprobs=[_by_text(token) for token in tokens],
            text_offset=[at.offset(token) for token in tokens],
        )


def _by_text(token: ScoredToken) -> dict[str, float] | None:
    """The likeliest tokens and the token itself, which clients look for among them."""
    if token.log_prob is None:
        return None
    told: dict[str, float] = {}
    for other in (*token.top, token):
        assert other.log_prob is not None
        told.setdefault(other.text, other.log_prob)  # of two with one text, the likelier
    return told


class ChatFormatter(Formatter):
    """Of ``/v1/chat/completions``. Tokens that end the answer are not part of its content."""

    prefix = "chatcmpl"
    chunk_object = "chat.completion.chunk"

    def _told(self, event: CompletionDelta) -> tuple[ScoredToken, ...]:
        return () if event.ends else (event.token,)

    def _begin(self, index: int, echo: tuple[ScoredToken, ...]) -> dict[str, Any] | None:
        return {**self._piece(index, "", ()), "delta": {"role": "assistant", "content": ""}}

    def _piece(self, index: int, text: str, tokens: tuple[ScoredToken, ...]) -> dict[str, Any]:
        logprobs = _chat_logprobs(list(tokens)).model_dump() if tokens else None
        delta = {"content": text}
        return {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": None}

    def _end(self, event: ChoiceEnded) -> dict[str, Any]:
        end = {"index": event.choice, "delta": {}, "logprobs": None}
        return {**end, "finish_reason": event.finish_reason}

    def _whole(self, choices: list[tuple[int, _Choice]]) -> BaseModel:
        told = [
            ChatChoice(
                index=index,
                message=AssistantMessage(content=choice.text),
                logprobs=_chat_logprobs(choice.tokens) if self.logprobs else None,
                finish_reason=choice.finish_reason,
            )
            for index, choice in choices
        ]
        return ChatCompletion(**self._head, choices=told, usage=self.usage, ttt=self.ttt)


def _chat_logprobs(tokens: list[ScoredToken]) -> ChatLogprobs:
    told = []
    for token in tokens:
        top = [TopLogprob(**_spelled(other)) for other in token.top]
        told.append(TokenLogprob(**_spelled(token), top_logprobs=top))
    return ChatLogprobs(content=told)


def _spelled(token: ScoredToken) -> dict[str, Any]:
    return {"token": token.text, "logprob": token.log_prob, "bytes": list(token.data)}
