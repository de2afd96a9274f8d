"""How a document and a query become one prompt: document first, so that its state is kept."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from jinja2 import TemplateError

from refine_server.ttt.decoding.token_limit import TokenLimit
from refine_server.ttt.interface.errors import TOO_LONG, RequestError
from refine_server.ttt.interface.requests import Limits, Message

Chat = Literal["auto", "always", "never"]

CHAT_PROMPT = "{document}\n\n{query}"
PLAIN_PROMPT = "{document}\n\nQuestion: {query}\nAnswer:"


SLOT = re.compile("\ue000(\\d+)\ue001")
"""Placeholder of a request's text in a rendered template, in characters that no template uses."""


@dataclass(frozen=True, slots=True)
class DocumentPrompt:
    """Token ids of a prompt's first part: what an adaptation reads and every query follows."""

    header: list[int]
    """The template's text before the document."""
    document: list[int]


class PromptTemplate:
    """The text around a document and a query, and the tokenizer that encodes all three.

    Texts of requests are encoded as plain text: what looks like a control token is spelled out, so
    that a document cannot end its own turn. An oversized text is refused before it is encoded
    whole.

    Args:
        tokenizer: the model's tokenizer.
        text: the prompt, with ``{document}`` before ``{query}``, once each; None takes
            ``CHAT_PROMPT`` for chat models and ``PLAIN_PROMPT`` for base models.
        chat: whether the text becomes the user's message in the tokenizer's chat template; ``auto``
            does that if the tokenizer has one.

    Raises:
        ValueError: if the text or ``chat`` does not fit.
    """

    def __init__(self, tokenizer: Any, text: str | None = None, chat: Chat = "auto") -> None:
        has_template = bool(getattr(tokenizer, "chat_template", None))
        if chat == "always" and not has_template:
            raise ValueError("chat is 'always', but the tokenizer has no chat template")
        self.tokenizer = tokenizer
        self.is_chat = has_template and chat != "never"
        self.text = text or (CHAT_PROMPT if self.is_chat else PLAIN_PROMPT)
        self._before, self._between, self._after = self._parts()
        self._token_limit = TokenLimit(tokenizer)

    def _parts(self) -> tuple[str, str, str]:
        rendered = self.text
        if self.is_chat:
            messages = [{"role": "user", "content": self.text}]
            rendered = self._apply_template(messages)
        before, found, rest = rendered.partition("{document}")
        between, found_too, after = rest.partition("{query}")
        if not found or not found_too or "{document}" in rest:
            raise ValueError(
                "the prompt template must contain {document} and, after it, {query}, each once"
            )
        return before, between, after

    def encode_document(self, document: str, limits: Limits) -> DocumentPrompt:
        """Encode the prompt up to the end of the document.

        Raises:
            RequestError: if the document is empty or too long.
        """
        (ids,) = self._encode_plain([document], limits.document_tokens, "document")
        return DocumentPrompt(self._bos() + self._template_ids(self._before), ids)

    def encode_query(self, query: str, limits: Limits) -> list[int]:
        """Encode the prompt after the document; raise RequestError if the query is unfit."""
        (ids,) = self._encode_plain([query], limits.query_tokens, "query")
        return self._template_ids(self._between) + ids + self._template_ids(self._after)

    def encode_prompt(
        self,
        text: str,
        limits: Limits,
        *,
        after_document: bool = False,
        add_special_tokens: bool = True,
    ) -> list[int]:
        """Encode a text as it is, control tokens included; raise RequestError if it is too long.

        Args:
            text: the prompt.
            limits: the longest texts that are accepted, in tokens.
            after_document: whether a document precedes the text. The tokenizer then adds nothing.
            add_special_tokens: whether the tokenizer adds the tokens that begin or end a text.
        """
        longest = limits.query_tokens if after_document else limits.prompt_tokens
        special = add_special_tokens and not after_document
        (ids,) = self._encode([text], longest, "prompt", TOO_LONG, add_special_tokens=special)
        return ids

    def encode_messages(
        self, messages: Sequence[Message], limits: Limits, *, after_document: bool = False
    ) -> list[int]:
        """Encode a conversation up to where the assistant answers.

        Chat models use their template, base models ``PLAIN_PROMPT`` for each turn. After a document
        the result is what follows the document: instructions come first and then the user's
        message, so that a single message is encoded exactly as by ``encode_query``.

        Raises:
            RequestError: if the messages are empty, too long or in an order that does not fit.
        """
        longest = limits.query_tokens if after_document else limits.prompt_tokens
        texts = [message.content for message in messages]
        ids = self._encode_plain(texts, longest, "messages", TOO_LONG)
        try:
            rendered = self._render(messages, after_document)
        except TemplateError as error:
            raise _unfit(f"the model's chat template rejects them: {error}") from None
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
            raise _unfit(
                "after a document, the first one that is not a system message must be the user's"
            )
        query = "\n\n".join(turn["content"] for turn in turns[: first + 1])
        turns[first]["content"] = self.text.replace("{query}", query)
        before, _, after = self._apply_template(turns[first:]).partition("{document}")
        if before != self._before:
            raise _unfit(
                "with them, the model's chat template changes the text before the document"
            )
        return after

    def _render_plain(self, messages: Sequence[Message], after_document: bool) -> str:
        if messages[-1].role != "user":
            raise _unfit("the last one must be the user's, because the model has no chat template")
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
        """Return the tokens that the tokenizer puts before a text; chat templates bring them."""
        return [] if self.is_chat else self._ids("")

    def _template_ids(self, text: str) -> list[int]:
        return self._ids(text, add_special_tokens=False) if text else []

    def _encode_plain(
        self, texts: Sequence[str], limit: int, param: str, code: str | None = None
    ) -> list[list[int]]:
        """Encode texts with control tokens spelled out; raise RequestError if they hold no text."""
        encoded = self._encode(
            texts,
            limit,
            param,
            code or f"{param}_too_long",
            add_special_tokens=False,
            split_special_tokens=True,
        )
        if not any(encoded):
            raise RequestError(f"{param} contains no text", param, "empty")
        return encoded

    def _encode(
        self, texts: Sequence[str], limit: int, param: str, code: str, **options: bool
    ) -> list[list[int]]:
        """Encode texts; raise RequestError if they have more than ``limit`` tokens together."""

        def count_tokens(piece: str) -> int:
            return len(self._ids(piece, **{**options, "add_special_tokens": False}))

        if self._token_limit.is_exceeded(texts, limit, count_tokens):
            raise _too_long(f"more than {limit}", limit, param, code)
        encoded = [self._ids(text, **options) for text in texts]
        tokens = sum(map(len, encoded))
        if tokens > limit:
            raise _too_long(str(tokens), limit, param, code)
        return encoded

    def _ids(self, text: str, **options: bool) -> list[int]:
        return list(self.tokenizer(text, **options)["input_ids"])


def _slot(number: int) -> str:
    return f"\ue000{number}\ue001"


def _unfit(reason: str) -> RequestError:
    return RequestError(f"messages: {reason}", "messages", "invalid_messages")


def _too_long(tokens: str, limit: int, param: str, code: str) -> RequestError:
    message = f"{param}: {tokens} tokens; at most {limit} are accepted"
    return RequestError(message, param, code)
