"""How a document and a query become one prompt: document first, so that its state is kept."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from jinja2 import TemplateError

from refine_server.ttt.interface.errors import TOO_LONG, RequestError
from refine_server.ttt.interface.requests import Limits, Message

Chat = Literal["auto", "always", "never"]

CHAT_PROMPT = "{document}\n\n{query}"
PLAIN_PROMPT = "{document}\n\nQuestion: {query}\nAnswer:"


SLOT = re.compile("\ue000(\\d+)\ue001")
"""Stands in a rendered template for a text of a request, in characters that no template uses."""


@dataclass(frozen=True)
class DocumentPrompt:
    """Token ids of a prompt's first part: what an adaptation reads, and every query follows."""

    header: list[int]
    document: list[int]


class PromptTemplate:
    """Text around a document and a query.

    Args:
        tokenizer: of the model.
        text: with ``{document}`` before ``{query}``, once each; None takes ``CHAT_PROMPT`` for
            chat models and ``PLAIN_PROMPT`` for base models.
        chat: whether the text is the user's message of the tokenizer's chat template; ``auto`` does
            that when the tokenizer has one.
    """

    def __init__(self, tokenizer: Any, text: str | None = None, chat: Chat = "auto") -> None:
        has_template = bool(getattr(tokenizer, "chat_template", None))
        if chat == "always" and not has_template:
            raise ValueError("chat='always', but the tokenizer has no chat template")
        self.tokenizer = tokenizer
        self.is_chat = has_template and chat != "never"
        self.text = text or (CHAT_PROMPT if self.is_chat else PLAIN_PROMPT)
        self._before, self._between, self._after = self._parts()

    def _parts(self) -> tuple[str, str, str]:
        rendered = self.text
        if self.is_chat:
            messages = [{"role": "user", "content": self.text}]
            rendered = self._apply_template(messages)
        before, found, rest = rendered.partition("{document}")
        between, found_too, after = rest.partition("{query}")
        if not found or not found_too or "{document}" in rest:
            raise ValueError("a prompt needs {document} and then {query}, once each")
        return before, between, after

    def encode_document(self, document: str, limits: Limits) -> DocumentPrompt:
        """The prompt up to the end of the document; RequestError when that is empty or too long.

        Requests' texts are read as plain text: what looks like a control token is spelled out, so
        a document cannot end its own turn.
        """
        ids = self._plain_ids(document)
        _check_length(ids, limits.document_tokens, "document")
        return DocumentPrompt(self._bos() + self._template_ids(self._before), ids)

    def encode_query(self, query: str, limits: Limits) -> list[int]:
        """The prompt after the document; RequestError when the query is empty or too long."""
        ids = self._plain_ids(query)
        _check_length(ids, limits.query_tokens, "query")
        return self._template_ids(self._between) + ids + self._template_ids(self._after)

    def encode_prompt(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """A text as the model's own vocabulary has it, control tokens included."""
        return list(self.tokenizer(text, add_special_tokens=add_special_tokens)["input_ids"])

    def encode_messages(
        self, messages: Sequence[Message], limits: Limits, *, after_document: bool = False
    ) -> list[int]:
        """A conversation up to where the assistant answers; RequestError when it cannot be one.

        Chat models get their template, base models ``PLAIN_PROMPT`` turn by turn. After a document
        this is what follows it: the document opens the first turn, instructions come next and then
        the user's message, so that a single message is just what ``encode_query`` makes of it.
        """
        ids = [self._plain_ids(message.content) for message in messages]
        longest = limits.query_tokens if after_document else limits.prompt_tokens
        _check_length([id for own in ids for id in own], longest, "messages", TOO_LONG)
        try:
            rendered = self._render(messages, after_document)
        except TemplateError as error:
            raise _unfit(f"the model's chat template refuses them: {error}") from None
        prompt = [] if after_document else self._bos()
        # The template's own text is at even places, the numbers of messages at odd ones.
        for place, part in enumerate(SLOT.split(rendered)):
            prompt += ids[int(part)] if place % 2 else self._template_ids(part)
        return prompt

    def _render(self, messages: Sequence[Message], after_document: bool) -> str:
        if not self.is_chat:
            return self._render_plain(messages, after_document)
        turns = [{"role": m.role, "content": _slot(n)} for n, m in enumerate(messages)]
        if not after_document:
            return self._apply_template(turns)
        first = next((n for n, m in enumerate(messages) if m.role != "system"), len(messages))
        if first == len(messages) or messages[first].role != "user":
            raise _unfit("after a document the first one, instructions aside, must be the user's")
        query = "\n\n".join(turn["content"] for turn in turns[: first + 1])
        turns[first]["content"] = self.text.replace("{query}", query)
        before, _, after = self._apply_template(turns[first:]).partition("{document}")
        if before != self._before:
            raise _unfit("the model's chat template has them change what precedes the document")
        return after

    def _render_plain(self, messages: Sequence[Message], after_document: bool) -> str:
        if messages[-1].role != "user":
            raise _unfit("the last one must be the user's, as the model has no chat template")
        around = {
            "system": ("\n\n", ""),
            "user": (self._between, self._after),
            "assistant": (" ", ""),
        }
        turns = [_slot(n).join(around[m.role]) for n, m in enumerate(messages)]
        text = "".join(turns)
        return text if after_document else text.lstrip()

    def _apply_template(self, turns: list[dict[str, str]]) -> str:
        rendered: str = self.tokenizer.apply_chat_template(
            turns, tokenize=False, add_generation_prompt=True
        )
        return rendered

    def _bos(self) -> list[int]:
        """What the tokenizer itself puts before a text (a chat template brings its own)."""
        return [] if self.is_chat else list(self.tokenizer("")["input_ids"])

    def _template_ids(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"]) if text else []

    def _plain_ids(self, text: str) -> list[int]:
        encoded = self.tokenizer(text, add_special_tokens=False, split_special_tokens=True)
        return list(encoded["input_ids"])


def _slot(number: int) -> str:
    return f"\ue000{number}\ue001"


def _unfit(reason: str) -> RequestError:
    return RequestError(f"messages: {reason}", "messages", "invalid_messages")


def _check_length(ids: list[int], limit: int, param: str, code: str | None = None) -> None:
    if not ids:
        raise RequestError(f"{param} holds no text", param, "empty")
    if len(ids) > limit:
        raise RequestError(
            f"{param} has {len(ids)} tokens; at most {limit} are accepted",
            param,
            code or f"{param}_too_long",
        )
