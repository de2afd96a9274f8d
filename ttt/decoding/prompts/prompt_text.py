"""The text of a prompt: what the template puts around a document, a query or a conversation."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

from jinja2 import TemplateError

from refine_server.ttt.decoding.prompts.control_tokens import SLOT, ControlTokens
from refine_server.ttt.interface.errors import RequestError
from refine_server.ttt.interface.requests import Message


@dataclass(frozen=True, kw_only=True, slots=True)
class SurroundingText:
    """The text around a document and a query."""

    before: str
    between: str
    after: str

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read a text with {document} and {query} in it.

        Raises:
            ValueError: one of them is missing or occurs twice, or {query} is the first.
        """
        before, found, rest = text.partition("{document}")
        between, found_too, after = rest.partition("{query}")
        if not found or not found_too or "{document}" in rest:
            raise ValueError(
                "the prompt template must contain {document} and, after it, {query}, each once"
            )
        return cls(before=before, between=between, after=after)

    def join(self, document: str, query: str) -> str:
        """Return the text with a document and a query in it."""
        return self.before + document + self.between + query + self.after


class PromptText:
    """Writes the text of prompts, in which control tokens of requests are spelled out.

    Args:
        tokenizer: the model's tokenizer, which has the chat template.
        text: the text around a document and a query. It is the user's message in a chat.
        is_chat: whether the tokenizer's chat template is used.

    Raises:
        ValueError: if the text does not fit, or the chat template cannot be used.
    """

    def __init__(self, tokenizer: Any, text: str, *, is_chat: bool) -> None:
        self.tokenizer, self.is_chat = tokenizer, is_chat
        self.control = ControlTokens(tokenizer)
        self._content = SurroundingText.parse(text)
        self.around = self._rendered_around()
        self.has_control_tokens = is_chat or self.control.occur_in(self._content.join("", ""))
        """Whether control tokens are to be recognised in the text."""

    def _rendered_around(self) -> SurroundingText:
        try:
            parts = self._user_message(self._content.join(SLOT, SLOT)).split(SLOT)
        except TemplateError as error:
            raise ValueError(f"the chat template cannot be used: {error}") from None
        if len(parts) != 3:
            raise ValueError("the chat template must contain a user's message once, unchanged")
        before, between, after = parts
        return SurroundingText(before=before, between=between, after=after)

    def up_to_document(self, document: str) -> str:
        """Write the prompt up to the end of a document.

        Raises:
            RequestError: the chat template changes what follows the document.
        """
        rendered = self._user_message(self._content.join(self._as_text(document), SLOT))
        text, found, _ = rendered.rpartition(SLOT)
        if not found or not text.endswith(self.around.between):
            message = "document: the model's chat template changes the text after it"
            raise RequestError(message, "document", "invalid_document")
        return text.removesuffix(self.around.between)

    def after_document(self, query: str) -> str:
        """Write the prompt from the end of the document, for a query."""
        rendered = self._user_message(self._content.join(SLOT, self._as_text(query)))
        return rendered.partition(SLOT)[2]

    @property
    def passage_break(self) -> str:
        """What parts a document from passages behind it.

        It is what the text between document and query begins with, because a document is cut where
        its tokens do not depend on that.
        """
        between = self.around.between
        return between[: len(between) - len(between.lstrip())] or "\n\n"

    def passages(self, text: str) -> str:
        """Write passages that follow a document, before what is between document and query."""
        return self.passage_break + self._as_text(text)

    def conversation(self, messages: Sequence[Message]) -> str:
        """Write a conversation up to where the assistant answers.

        Raises:
            RequestError: the messages are in an order that does not fit.
        """
        if self.is_chat:
            return self._apply_template(self._turns(messages))
        return self._plain_turns(messages, after_document=False)

    def conversation_after_document(self, messages: Sequence[Message]) -> str:
        """Write what follows a document in a conversation about it.

        Instructions come first and then the user's message, so that a single message is written
        exactly as by ``after_document``.

        Raises:
            RequestError: the messages are in an order that does not fit.
        """
        if not self.is_chat:
            return self._plain_turns(messages, after_document=True)
        turns = self._turns(messages)
        first = next((n for n, m in enumerate(messages) if m.role != "system"), len(messages))
        if first == len(messages) or messages[first].role != "user":
            raise _unfit(
                "after a document, the first one that is not a system message must be the user's"
            )
        query = "\n\n".join(turn["content"] for turn in turns[: first + 1])
        turns[first]["content"] = self._content.join(SLOT, query)
        before, _, after = self._apply_template(turns[first:]).partition(SLOT)
        if before != self.around.before:
            raise _unfit(
                "with them, the model's chat template changes the text before the document"
            )
        return after

    def _turns(self, messages: Sequence[Message]) -> list[dict[str, str]]:
        spell_out = self.control.spell_out
        return [
            {"role": m.role, "content": spell_out(m.content, by_assistant=m.role == "assistant")}
            for m in messages
        ]

    def _plain_turns(self, messages: Sequence[Message], *, after_document: bool) -> str:
        if messages[-1].role != "user":
            raise _unfit("the last one must be the user's, because the model has no chat template")
        around = {
            "system": ("\n\n", ""),
            "user": (self.around.between, self.around.after),
            "assistant": (" ", ""),
        }
        text = ""
        for message in messages:
            before, after = around[message.role]
            if not text and not after_document:
                before = before.lstrip()
            text += before + self._as_text(message.content) + after
        return text

    def _user_message(self, content: str) -> str:
        """Write a user's only message; without a chat template, it is the whole prompt."""
        if not self.is_chat:
            return content
        rendered: str = self._render([{"role": "user", "content": content}])
        return rendered

    def _apply_template(self, turns: list[dict[str, str]]) -> str:
        try:
            return self._render(turns)
        except TemplateError as error:
            raise _unfit(f"the model's chat template rejects them: {error}") from None

    def _render(self, turns: list[dict[str, str]]) -> str:
        rendered: str = self.tokenizer.apply_chat_template(
            turns, tokenize=False, add_generation_prompt=True
        )
        return rendered

    def _as_text(self, text: str) -> str:
        """Prepare a request's text so that no control token is recognised in it."""
        # Where none is recognised anyway, it is encoded best without breaks.
        control = self.control
        return control.spell_out(text) if self.has_control_tokens else control.drop_marks(text)


def _unfit(reason: str) -> RequestError:
    return RequestError(f"messages: {reason}", "messages", "invalid_messages")
