"""How a document and a query become one prompt: document first, so that its state is kept.

A prompt is encoded as one text, as the model saw texts in training: tokens may cross the seams
between the template, the document and the query. The document's tokens must be the same for every
query that follows. The document is therefore cut at its last token boundary that does not depend on
what follows, and its remaining characters, its *tail*, are encoded with the query.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from refine_server.ttt.decoding.prompts.prompt_text import PromptText
from refine_server.ttt.decoding.prompts.text_encoder import TextEncoder
from refine_server.ttt.decoding.prompts.token_limit import TokenLimit, most_characters
from refine_server.ttt.interface.errors import TOO_LONG, RequestError
from refine_server.ttt.interface.requests import Limits, Message, PromptForm

Chat = Literal["auto", "always", "never"]

CHAT_PROMPT = "{document}\n\n{query}"
PLAIN_PROMPT = "{document}\n\nQuestion: {query}\nAnswer:"
DOCUMENT_TOO_LONG = "document_too_long"
QUERY_TOO_LONG = "query_too_long"


@dataclass(frozen=True, kw_only=True, slots=True)
class DocumentPrompt:
    """Token ids of a prompt's first part: what an adaptation reads and every query follows."""

    header: list[int]
    """The template's text before the document."""
    document: list[int]
    """The document without its tail."""
    tail: str = ""
    """The document's last characters, whose tokens depend on what follows. They are encoded with
    the query. Mostly there are none, or a punctuation mark or white space."""


class PromptTemplate:
    """The text around a document and a query, and the tokenizer that encodes all three.

    Texts of requests pass the filters of the chat template, such as the removal of white space at
    their ends. They are encoded as plain text: what looks like a control token is spelled out, so
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
        text = text or (CHAT_PROMPT if self.is_chat else PLAIN_PROMPT)
        self._text = PromptText(tokenizer, text, is_chat=self.is_chat)
        self._token_limit = TokenLimit(tokenizer)
        self._encoder = TextEncoder(tokenizer, control_tokens=self._text.has_control_tokens)
        self._verbatim = TextEncoder(tokenizer, control_tokens=True)
        around = self._text.around
        # A chat template writes the tokens that begin a text, others leave it to the tokenizer.
        self._begin = [] if self.is_chat else self._ids_before_text()
        self._header = self._begin + self._encoder.encode(around.before)
        one_letter = self._encoder.encode_after(around.between + "a" + around.after)
        self._query_overhead = len(one_letter) - 1
        """Tokens that the template adds to a query, up to one that crosses a seam."""

    @property
    def form(self) -> PromptForm:
        """How prompts are written."""
        return "chat" if self.is_chat else "plain"

    # -- document and query ---------------------------------------------------------------------

    def encode_document(self, document: str, limits: Limits) -> DocumentPrompt:
        """Encode the prompt up to the document's tail.

        Raises:
            RequestError: if the document is empty or too long.
        """
        limit, code = limits.document_tokens, DOCUMENT_TOO_LONG
        self._require_text([document], "document")
        self._require_below([document], limit, "document", code)
        text = self._text.up_to_document(document)
        ids, tail = self._encode_up_to_tail(text)
        header = _common_prefix(self._header, ids)
        if tail and len(ids) == header:  # the tokenizer drops all but the tail
            ids, tail = self._begin + self._encoder.encode(text), ""
        if len(ids) == header:
            raise _no_text("document")
        self._require_at_most(limit, len(ids) - header, "document", code)
        return DocumentPrompt(header=ids[:header], document=ids[header:], tail=tail)

    def _encode_up_to_tail(self, text: str) -> tuple[list[int], str]:
        """Encode the prompt's text up to the end of the document, without its tail."""
        around = self._text.around
        if not around.between:  # a query could complete a control token that the tail begins
            return self._begin + self._encoder.encode(text), ""
        before = len(around.before) if text.startswith(around.before) else 0
        ids, tail = self._encoder.encode_stable(text, around.between, shortest=before)
        return self._begin + ids, tail

    @property
    def header_tokens(self) -> int:
        """Tokens of the prompt before the document."""
        return len(self._header)

    def locate_tokens(self, document: str, longest: int) -> tuple[list[int], list[tuple[int, int]]]:
        """Encode a document by itself, to know where in it each token stands.

        Args:
            document: the document.
            longest: the most tokens that it may have.

        Returns:
            The token ids, and the characters of each: first, and one beyond the last.

        Raises:
            RequestError: if the document is empty or too long.
        """
        code = DOCUMENT_TOO_LONG
        self._require_text([document], "document")
        self._require_below([document], longest, "document", code)
        encoded = self.tokenizer(
            document,
            add_special_tokens=False,
            split_special_tokens=True,
            return_offsets_mapping=True,
        )
        self._require_at_most(longest, len(encoded["input_ids"]), "document", code)
        return list(encoded["input_ids"]), list(encoded["offset_mapping"])

    def encode_query(
        self, query: str, limits: Limits, *, tail: str = "", passages: str = ""
    ) -> list[int]:
        """Encode the prompt after the document.

        Args:
            query: the query.
            limits: the longest texts that are accepted, in tokens. Passages do not count.
            tail: the document's (``DocumentPrompt.tail``).
            passages: text that is put between the document and the query.

        Raises:
            RequestError: if the query is empty or too long.
        """
        self.require_query(query, limits, "query")
        text = self._text.after_document(query)
        if passages:
            tail += self._text.passages(passages)
        return self._encode_after_document(text, tail, limits.query_tokens, "query", QUERY_TOO_LONG)

    def require_query(self, query: str, limits: Limits, param: str) -> None:
        """Raise RequestError if a query is empty or, for certain, too long.

        Args:
            query: the query. It is encoded up to the limit at most.
            limits: the longest texts that are accepted, in tokens.
            param: the field that has the query.
        """
        self._require_text([query], param)
        self._require_below([query], limits.query_tokens, param, QUERY_TOO_LONG)

    def _encode_after_document(
        self, text: str, tail: str, limit: int, param: str, code: str
    ) -> list[int]:
        ids = self._encoder.encode_after(tail + text)
        tokens = len(ids) - self._query_overhead - len(self._encoder.encode_after(tail))
        self._require_at_most(limit, tokens, param, code)
        return ids

    # -- texts as they are, and conversations -----------------------------------------------------

    def encode_prompt(
        self, text: str, limits: Limits, *, add_special_tokens: bool = True
    ) -> list[int]:
        """Encode a text as it is, control tokens included.

        Args:
            text: the prompt.
            limits: the longest texts that are accepted, in tokens.
            add_special_tokens: whether the tokenizer adds the tokens that begin or end a text.

        Raises:
            RequestError: if the text is too long.
        """
        limit = limits.prompt_tokens
        self._require_below([text], limit, "prompt", TOO_LONG, split_special_tokens=False)
        ids = self._ids(text, add_special_tokens=add_special_tokens)
        self._require_at_most(limit, len(ids), "prompt", TOO_LONG)
        return ids

    def encode_continuation(
        self, text: str, limits: Limits, *, tail: str, passages: str = ""
    ) -> list[int]:
        """Encode a text as it is behind a document, control tokens included.

        Args:
            text: the text; it may be empty.
            limits: the longest texts that are accepted, in tokens. Passages do not count.
            tail: the document's (``DocumentPrompt.tail``).
            passages: text that is put between the document and the text.

        Raises:
            RequestError: if the text is too long.
        """
        limit, control = limits.query_tokens, self._text.control
        self._require_below([text], limit, "prompt", TOO_LONG, split_special_tokens=False)
        if passages:
            tail += self._text.passage_break + passages
        tail = control.spell_out(tail)
        ids = self._verbatim.encode_after(tail + control.drop_marks(text))
        tokens = len(ids) - len(self._verbatim.encode_after(tail))
        self._require_at_most(limit, tokens, "prompt", TOO_LONG)
        return ids

    def encode_messages(self, messages: Sequence[Message], limits: Limits) -> list[int]:
        """Encode a conversation up to where the assistant answers.

        Chat models use their template, base models ``PLAIN_PROMPT`` for each turn.

        Raises:
            RequestError: if the messages are empty, too long or in an order that does not fit.
        """
        limit = limits.prompt_tokens
        self._require_messages(messages, limit)
        ids = self._begin + self._encoder.encode(self._text.conversation(messages))
        self._require_at_most(limit, len(ids), "messages", TOO_LONG)
        return ids

    def encode_messages_after_document(
        self, messages: Sequence[Message], limits: Limits, *, tail: str, passages: str = ""
    ) -> list[int]:
        """Encode what follows a document in a conversation about it.

        Args:
            messages: the conversation. Its instructions and the user's first message together are
                the query.
            limits: the longest texts that are accepted, in tokens. Passages do not count.
            tail: the document's (``DocumentPrompt.tail``).
            passages: text that is put between the document and the conversation.

        Raises:
            RequestError: if the messages are empty, too long or in an order that does not fit.
        """
        limit = limits.query_tokens
        self._require_messages(messages, limit)
        text = self._text.conversation_after_document(messages)
        if passages:
            tail += self._text.passages(passages)
        return self._encode_after_document(text, tail, limit, "messages", TOO_LONG)

    # -- checks ---------------------------------------------------------------------------------

    def _require_text(self, texts: Sequence[str], param: str) -> None:
        if not any(map(self._text.control.drop_marks, texts)):
            raise _no_text(param)

    def _require_messages(self, messages: Sequence[Message], limit: int) -> None:
        texts = [message.content for message in messages]
        self._require_text(texts, "messages")
        self._require_below(texts, limit, "messages", TOO_LONG)

    def _require_below(
        self,
        texts: Sequence[str],
        limit: int,
        param: str,
        code: str,
        *,
        split_special_tokens: bool = True,
    ) -> None:
        """Raise RequestError if texts have, for certain, more than ``limit`` tokens together.

        Texts with more characters than ``most_characters`` are refused, too.
        """
        characters, most = sum(map(len, texts)), most_characters(limit)
        if characters > most:
            message = f"{param}: {characters} characters; at most {most} are accepted"
            raise RequestError(message, param, code)

        def count_tokens(piece: str) -> int:
            options = {"split_special_tokens": split_special_tokens}
            return len(self._ids(piece, add_special_tokens=False, **options))

        if self._token_limit.is_exceeded(texts, limit, count_tokens):
            raise _too_long(f"more than {limit}", limit, param, code)

    def _require_at_most(self, limit: int, tokens: int, param: str, code: str) -> None:
        if tokens > limit:
            raise _too_long(str(tokens), limit, param, code)

    def _ids_before_text(self) -> list[int]:
        """Return the tokens that the tokenizer puts before a text."""
        ids, text = self._ids("a"), self._ids("a", add_special_tokens=False)
        starts = (n for n in range(len(ids)) if ids[n : n + len(text)] == text)
        return ids[: next(starts, 0)]

    def _ids(self, text: str, **options: bool) -> list[int]:
        return list(self.tokenizer(text, **options)["input_ids"])


def _common_prefix(one: Sequence[int], other: Sequence[int]) -> int:
    """Return how many ids two sequences begin with in common."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((n for n, (a, b) in pairs if a != b), min(len(one), len(other)))


def _no_text(param: str) -> RequestError:
    return RequestError(f"{param} contains no text", param, "empty")


def _too_long(tokens: str, limit: int, param: str, code: str) -> RequestError:
    message = f"{param}: {tokens} tokens; at most {limit} are accepted"
    return RequestError(message, param, code)
