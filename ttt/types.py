"""Values that travel between the rooms: requests, events and results of one answer."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from refine_server.ttt.config import AdaptConfig, SamplingConfig

if TYPE_CHECKING:  # it holds tensors, and these values must be had without importing torch
    from refine_server.ttt.answering import AdaptedDocument


class RequestError(ValueError):
    """The request cannot be served as written; nothing was changed.

    ``param`` names the offending field and ``code`` is a stable machine-readable word.
    """

    def __init__(self, message: str, param: str, code: str) -> None:
        super().__init__(message)
        self.param = param
        self.code = code


class DamagedError(ValueError):
    """Stored bytes that are no adapted document of this format; the message says what is wrong."""


TOO_LONG = "context_length_exceeded"
"""What OpenAI's clients know a prompt by that is too long for the model."""

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


@dataclass(frozen=True)
class StepReport:
    """One optimiser step as it was seen: losses before the step, in nats per token."""

    step: int
    loss: float
    ntp_loss: float
    grpo_loss: float
    reward_mean: float
    reward_std: float
    entropy_mean: float
    kl: float
    grad_norm: float
    seconds: float
    rollout_tokens: int


@dataclass(frozen=True)
class Judgement:
    """How weights did on the held-out spans of the document; step 0 is the base model.

    loss: nats per token in place. reward: share of the spans' tokens, 0 to 1, that greedy decoding
    repeats rightly behind a cue after the document.
    """

    step: int
    loss: float
    reward: float


@dataclass(frozen=True)
class AdaptationReport:
    """How an adaptation ended.

    ``accepted_step`` is the step whose weights the answer uses (0: the base weights).
    ``guard`` says why the answer does not use the steps that ran, or why none could run; None when
    nothing went wrong. ``stopped`` says why fewer steps than asked were run, None when all were.
    ``first_ntp_loss`` and ``final_ntp_loss`` are the next-token loss before the first step and
    under the weights that the answer uses, on what the next-token loss reads. ``held_out`` is what
    the guard judged by, the base model first; empty without one.
    """

    objective: str
    steps: tuple[StepReport, ...]
    accepted_step: int
    guard: str | None
    stopped: str | None
    first_ntp_loss: float | None
    final_ntp_loss: float | None
    fast_weight_bytes: int
    held_out: tuple[Judgement, ...] = ()

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "AdaptationReport":
        """The report that ``dataclasses.asdict`` gave these values of."""
        steps = tuple(StepReport(**step) for step in values["steps"])
        held_out = tuple(Judgement(**judgement) for judgement in values["held_out"])
        return cls(**{**values, "steps": steps, "held_out": held_out})

    @property
    def adapted(self) -> bool:
        """Whether the answer uses anything but the base weights."""
        return self.accepted_step > 0


@dataclass(frozen=True)
class Usage:
    """Token counts of one answer."""

    document_tokens: int
    query_tokens: int
    completion_tokens: int
    rollout_tokens: int


@dataclass(frozen=True)
class Timings:
    """Seconds spent in each phase of one answer, queueing excluded (the engine knows that)."""

    prefill_seconds: float
    adapt_seconds: float
    decode_seconds: float
    time_to_first_token_seconds: float


# -- events of one answer, in order -------------------------------------------------------------


@dataclass(frozen=True)
class DocumentRead:
    """The document was tokenised and its frozen part computed."""

    document_tokens: int
    seconds: float


@dataclass(frozen=True)
class AdaptationStep:
    """One step of the adaptation ended."""

    report: StepReport


@dataclass(frozen=True)
class BaseAnswered:
    """``compare_base``: what the unadapted model answers."""

    text: str


@dataclass(frozen=True)
class AdaptationEnded:
    """The loop is over; what follows is decoded from its result."""

    report: AdaptationReport
    seconds: float


@dataclass(frozen=True)
class AnswerDelta:
    """One more decoded token. ``text`` may be empty while a character is incomplete."""

    text: str


@dataclass(frozen=True)
class AnswerCompleted:
    """The whole answer. The last event of a question."""

    answer: str
    base_answer: str | None
    finish_reason: str
    adaptation: AdaptationReport
    usage: Usage
    timings: Timings


@dataclass(frozen=True)
class DocumentAdapted:
    """The document is ready for questions. The last event of an adaptation."""

    document: "AdaptedDocument"


@dataclass(frozen=True)
class ScoredToken:
    """A token as bytes, which need not be whole characters, and its log-probability in nats.

    ``log_prob`` is None where nothing was there to predict the token, or where it was not asked
    for. ``top`` holds the likeliest tokens in its place, best first.
    """

    data: bytes
    log_prob: float | None = None
    top: tuple["ScoredToken", ...] = ()

    @property
    def text(self) -> str:
        """The token as text; bytes that are no characters are spelled out, as OpenAI does."""
        try:
            return self.data.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in self.data)


@dataclass(frozen=True)
class PromptRead:
    """A prompt was read. ``echo`` holds its own tokens if they were asked for."""

    prompt: int
    tokens: int
    seconds: float
    echo: tuple[ScoredToken, ...]


@dataclass(frozen=True)
class CompletionDelta:
    """One more token of a choice: what it adds, and whether it is a token that ends answers.

    ``text`` may be empty while a character is incomplete or a stop string may have begun.
    """

    choice: int
    text: str
    token: ScoredToken
    ends: bool


@dataclass(frozen=True)
class ChoiceEnded:
    """A choice is complete: "stop" or "length"."""

    choice: int
    finish_reason: str


@dataclass(frozen=True)
class CompletionEnded:
    """All choices are complete. The last event of a completion."""

    prompt_tokens: int
    completion_tokens: int
    timings: Timings


Work = AnswerRequest | AdaptRequest | AskRequest | CompletionRequest
"""What the model can be asked to do."""

Event = (
    DocumentRead
    | AdaptationStep
    | BaseAnswered
    | AdaptationEnded
    | AnswerDelta
    | AnswerCompleted
    | DocumentAdapted
    | PromptRead
    | CompletionDelta
    | ChoiceEnded
    | CompletionEnded
)
Last = AnswerCompleted | DocumentAdapted | CompletionEnded
"""One of these ends every piece of work."""
