"""What the model can be asked to do: requests as values that import no torch."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from refine_server.ttt.interface.config import AdaptConfig, SamplingConfig
from refine_server.ttt.interface.evidence import (
    ContextStrategy,
    Evidence,
    EvidenceByAttention,
    EvidenceByUtility,
    OnOverflow,
    ReadContext,
)

if TYPE_CHECKING:  # it holds tensors, and requests must be importable without torch
    from refine_server.ttt.document import AdaptedDocument
    from refine_server.ttt.document_adaptation import DocumentAdaptation
    from refine_server.ttt.query_side.query_adaptation import QueryAdaptation

DEFAULT_CONTEXT: ReadContext = "document+passages"
"""What an answer of the server reads where a request says nothing of it."""
DEFAULT_ADAPTATION = AdaptConfig(objective="none")
"""How an answer of the server adapts where a request says nothing of it: not at all, because no
adaptation was shown to answer better than evidence does (docs/quality.md)."""
SENT_FACTOR = 4
"""How many times longer than what is read of it a document may be."""
DEFAULT_OVERFLOW: OnOverflow = "passages"
"""What is done with a document that is too long, where its query is known: what the query asks
about is read, wherever it stands."""
LOCAL = "local"
"""The owner where there is only one, for example in a process without a server."""


def default_context(evidence: Evidence | None) -> ReadContext:
    """Return what an answer of the server reads where a request says nothing of it.

    Evidence that the model chooses is chosen in the document as it was read.
    """
    by_model = isinstance(evidence, EvidenceByAttention | EvidenceByUtility)
    return "document" if by_model else DEFAULT_CONTEXT


@dataclass(frozen=True)
class Limits:
    """The longest texts that are read, in tokens: the server's limits, and those of the model."""

    document_tokens: int = 32_768
    query_tokens: int = 4_096
    context_length: int | None = None
    """Longest sequence, document, query and answer together; None: any length."""

    def within(self, context_length: int | None) -> "Limits":
        """Return the limits for a model that was trained for sequences of this length."""
        if context_length is None:
            return self
        query_tokens = min(self.query_tokens, max(context_length // 2, 1))
        return Limits(self.document_tokens, query_tokens, context_length)

    @property
    def prompt_tokens(self) -> int:
        """The longest prompt that contains its own document; one token is left to answer."""
        together = self.document_tokens + self.query_tokens
        return together if self.context_length is None else min(together, self.context_length - 1)

    @property
    def sequence_tokens(self) -> int:
        """The longest prompt and its answer together, as clients are told."""
        together = self.document_tokens + self.query_tokens
        return together if self.context_length is None else min(together, self.context_length)

    @property
    def sent_tokens(self) -> int:
        """The longest document that is accepted, though it may be too long to be read as a whole.

        To choose what is read of it, all of it is encoded, which takes time.
        """
        return SENT_FACTOR * self.document_tokens

    def beside(self, tokens: int, max_tokens: int) -> int | None:
        """Return how many tokens fit beside others and an answer; None: any number.

        Args:
            tokens: what is read in any case.
            max_tokens: the longest answer. It gets half of what is left at most.
        """
        if self.context_length is None:
            return None
        left = self.context_length - tokens
        return max(left - min(max_tokens, left // 2), 0)


@dataclass(frozen=True)
class Message:
    """One turn of a conversation."""

    role: Literal["system", "user", "assistant"]
    content: str


@dataclass(frozen=True)
class Conversation:
    """Turns of a conversation, to be continued by the assistant."""

    messages: tuple[Message, ...]


Prompt = str | tuple[int, ...] | Conversation
"""A text, its token ids, or a conversation."""


PromptForm = Literal["chat", "plain"]
"""How prompts are written: by the tokenizer's chat template, or as plain text."""


@dataclass(frozen=True)
class AdaptRequest:
    """Adapt to a document, for the owner who alone may use the result."""

    document: str
    adapt: AdaptConfig = AdaptConfig()
    owner: str = LOCAL
    queries: tuple[str, ...] = ()
    """What will be asked, where that is known when the document is adapted to. Adapting on query
    spans or on the prompt needs one; on the evidence, any number aims the adaptation."""
    evidence: Evidence | None = None
    """How evidence is found, where the adaptation is on evidence; None: by words."""
    on_overflow: OnOverflow = "truncate_middle"
    """What is done with a document that is too long; passages are chosen by the query."""
    pages: tuple[int, ...] = ()
    """First character of each page of the document; empty where it has none."""


@dataclass(frozen=True)
class AskRequest:
    """Answer a query from a document that was adapted to before."""

    adapted: "AdaptedDocument | DocumentAdaptation"
    query: str
    sampling: SamplingConfig = SamplingConfig()
    owner: str = LOCAL
    compare_base: bool = False
    """Whether the unadapted model answers as well."""


@dataclass(frozen=True)
class AnswerRequest:
    """Adapt to a document for one query, and answer the query; or answer it from an adaptation of
    queries to the document that was made before."""

    document: str
    query: str
    adapt: AdaptConfig = AdaptConfig()
    sampling: SamplingConfig = SamplingConfig()
    compare_base: bool = False
    """Whether the unadapted model answers as well."""
    owner: str = LOCAL
    context: ContextStrategy = "document"
    """What the model reads before the query."""
    evidence: Evidence | None = None
    """How evidence is found; None: by words where something needs it, and not at all otherwise."""
    on_overflow: OnOverflow = DEFAULT_OVERFLOW
    """What is done with a document that is too long."""
    kept: "QueryAdaptation | None" = None
    """The adaptation of queries to ``document`` that answers, instead of one of this request."""
    pages: tuple[int, ...] = ()
    """First character of each page of the document; empty where it has none."""


@dataclass(frozen=True)
class CompletionRequest:
    """Continue each prompt ``n`` times. Choice j of a prompt is sampled with the seed plus j."""

    prompts: tuple[Prompt, ...]
    sampling: SamplingConfig = SamplingConfig()
    n: int = 1
    logprobs: int | None = None
    """Number of most likely tokens reported beside each token; None reports no log-probability."""
    echo: bool = False
    """Whether the prompts' own tokens are reported as well."""
    adapted: "AdaptedDocument | DocumentAdaptation | None" = None
    """The document whose state every prompt continues, under its fast weights."""
    document: str | None = None
    """The text of a document that every prompt follows: of ``adapted``, or else of one that the
    base model reads. Without either, prompts follow nothing."""
    context: ReadContext = "document"
    """What the model reads of ``document`` before each prompt."""
    evidence: Evidence | None = None
    """How evidence for a prompt is found in ``document``; None: as for an answer."""
    on_overflow: OnOverflow = DEFAULT_OVERFLOW
    """What is done with a ``document`` that is too long."""
    pages: tuple[int, ...] = ()
    """First character of each page of the document; empty where it has none."""
    kept: "QueryAdaptation | None" = None
    """The adaptation of queries to ``document`` under which prompts are read and continued."""
    owner: str = LOCAL


Work = AnswerRequest | AdaptRequest | AskRequest | CompletionRequest
"""What the model can be asked to do."""
