"""How a document and a query become one prompt: document first, so that its state is kept."""

from dataclasses import dataclass
from typing import Any, Literal

from refine_server.ttt.types import Limits, RequestError

Chat = Literal["auto", "always", "never"]

CHAT_PROMPT = "{document}\n\n{query}"
PLAIN_PROMPT = "{document}\n\nQuestion: {query}\nAnswer:"


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
            rendered = self.tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=True
            )
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

    def _bos(self) -> list[int]:
        """What the tokenizer itself puts before a text (a chat template brings its own)."""
        return [] if self.is_chat else list(self.tokenizer("")["input_ids"])

    def _template_ids(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"]) if text else []

    def _plain_ids(self, text: str) -> list[int]:
        encoded = self.tokenizer(text, add_special_tokens=False, split_special_tokens=True)
        return list(encoded["input_ids"])


def _check_length(ids: list[int], limit: int, param: str) -> None:
    if not ids:
        raise RequestError(f"{param} holds no text", param, "empty")
    if len(ids) > limit:
        raise RequestError(
            f"{param} has {len(ids)} tokens; at most {limit} are accepted",
            param,
            f"{param}_too_long",
        )
