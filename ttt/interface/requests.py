"""What the model can be asked to do: requests, with nothing that needs torch."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from refine_server.ttt.interface.config import AdaptConfig, SamplingConfig
from refine_server.ttt.interface.errors import RequestError

if TYPE_CHECKING:  # it holds tensors, and these values must be had without importing torch
    from refine_server.ttt.document import AdaptedDocument

LOCAL = "local"
"""The owner where there is only one, such as a process of one's own."""


@dataclass(frozen=True)
class Limits:
    """The longest document and query that are accepted, in tokens."""

    document_tokens: int = 32_768
    query_tokens: int = 4_096

    @property
    def prompt_tokens(self) -> int:
        """The longest prompt that brings its own document."""
        return self.document_tokens + self.query_tokens


@dataclass(frozen=True)
class Message:
    """One turn of a conversation."""

    role: Literal["system", "user", "assistant"]
    content: str


@dataclass(frozen=True)
class AdaptRequest:
    """A document to adapt to, for an owner: whoever may use the result.

    ``query`` is what it will be asked, where that is known. Without one, RequestError for settings
    that choose by it.
    """

    document: str
    adapt: AdaptConfig = AdaptConfig()
    owner: str = LOCAL
    query: str | None = None

    def __post_init__(self) -> None:
        if self.query is None and self.adapt.selection == "query":
            message = "adapt.selection: 'query' needs a query, and adapting alone has none"
            raise RequestError(message, "adapt.selection", "query_needed")


@dataclass(frozen=True)
class AskRequest:
    """A question for a document that was adapted to before."""

    adapted: "AdaptedDocument"
    query: str
    sampling: SamplingConfig = SamplingConfig()
    owner: str = LOCAL


@dataclass(frozen=True)
class AnswerRequest:
    """A question about a document, with how to adapt and how to decode."""

    document: str
    query: str
    adapt: AdaptConfig = AdaptConfig()
    sampling: SamplingConfig = SamplingConfig()
    compare_base: bool = False
    owner: str = LOCAL


@dataclass(frozen=True)
class CompletionRequest:
    """Prompts, in tokens, to continue ``n`` times each.

    ``logprobs`` is how many of the likeliest tokens are told beside each token, None to tell no
    log-probability at all; with ``echo`` the prompts' own tokens are told as well. ``adapted`` is
    the document whose state every prompt continues from, under its fast weights; without one the
    base model begins anew. Choice j of a prompt is sampled with the seed plus j.
    """

    prompts: tuple[tuple[int, ...], ...]
    sampling: SamplingConfig = SamplingConfig()
    n: int = 1
    logprobs: int | None = None
    echo: bool = False
    adapted: "AdaptedDocument | None" = None
    owner: str = LOCAL


Work = AnswerRequest | AdaptRequest | AskRequest | CompletionRequest
"""What the model can be asked to do."""
