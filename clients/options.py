"""Options of requests, as types: what is left out keeps the server's default."""

from typing import Any, Literal, Required, TypedDict


class OnDocumentOptions(TypedDict):
    """Adapt on the whole document."""

    kind: Literal["document"]


class OnSpansOptions(TypedDict, total=False):
    """Adapt on short spans of the document."""

    kind: Required[Literal["spans"]]
    tokens: int
    ntp_on: Literal["spans", "document"]
    choose: Literal["entropy", "surprise", "uniform", "argmax", "argmin"]


class OnQuerySpansOptions(TypedDict, total=False):
    """Adapt on the spans of the document that are most similar to the query."""

    kind: Required[Literal["query_spans"]]
    tokens: int
    ntp_on: Literal["spans", "document"]
    learn_as: Literal["text", "answer", "answer_in_context"]


class OnPromptOptions(TypedDict):
    """Adapt on the whole prompt: the document and the query behind it."""

    kind: Literal["prompt"]


class OnEvidenceOptions(TypedDict):
    """Adapt on the evidence for the query, over the document's frozen state."""

    kind: Literal["evidence"]


class RolloutOptions(TypedDict, total=False):
    """The rollouts of a step."""

    positions: int
    per_position: int
    tokens: int
    temperature: float
    select: Literal["entropy", "surprise", "uniform", "argmax", "argmin"]
    reward: Literal["exact", "cosine", "hybrid"]
    demonstration: bool


class LossOptions(TypedDict, total=False):
    """Coefficients of the loss."""

    ntp: float
    grpo: float
    kl: float
    attention: float


class OptimizerOptions(TypedDict, total=False):
    """How many steps, and how large."""

    steps: int
    learning_rate: float
    weight_decay: float
    max_grad_norm: float
    max_seconds: float | None


class FastWeightOptions(TypedDict, total=False):
    """The weights that the request owns and steps."""

    targets: Literal["fast_weights", "low_rank", "queries", "all"]
    rank: int


class _AdaptOptions(TypedDict, total=False):
    preset: Literal["fast", "balanced", "thorough", "paper"] | None
    objective: Literal["refine", "ntp", "attention", "none"]
    rollouts: RolloutOptions
    loss: LossOptions
    optimizer: OptimizerOptions
    fast_weights: FastWeightOptions
    guard: Literal["held_out", "answer", "none"]
    seed: int
    trace: bool


class AdaptOptions(_AdaptOptions, total=False):
    """How to adapt; what is left out keeps the server's default."""

    on: (
        OnDocumentOptions
        | OnSpansOptions
        | OnQuerySpansOptions
        | OnPromptOptions
        | OnEvidenceOptions
    )


class DocumentAdaptOptions(_AdaptOptions, total=False):
    """How to adapt to a document, for a result that is kept."""

    on: OnDocumentOptions | OnSpansOptions | OnEvidenceOptions


class EvidenceByWordsOptions(TypedDict, total=False):
    """The chunks of a document that have most words in common with the query, or with another."""

    by: Required[Literal["bm25"]]
    words: str | None
    count: int
    tokens: int


class EvidenceByAttentionOptions(TypedDict, total=False):
    """The chunks of a document to which the question attends most."""

    by: Required[Literal["attention"]]
    count: int
    tokens: int


class EvidenceByUtilityOptions(TypedDict, total=False):
    """The chunks of a document behind which the model predicts the question best."""

    by: Required[Literal["utility"]]
    count: int
    tokens: int


class DocumentSpan(TypedDict):
    """A part of a document, in characters."""

    start: int
    end: int


class EvidenceSpansOptions(TypedDict):
    """Parts of the document that the client names."""

    by: Literal["spans"]
    spans: list[DocumentSpan]


EvidenceOptions = (
    EvidenceByWordsOptions
    | EvidenceByAttentionOptions
    | EvidenceByUtilityOptions
    | EvidenceSpansOptions
)
"""How evidence is found in a document."""
ReadContext = Literal["document", "passages", "document+passages"]
"""What the model reads of a document."""
ContextStrategy = Literal["document", "passages", "document+passages", "best"]
"""The same, or the best of the answers in these three ways."""


class TextFormatOptions(TypedDict):
    """Any text."""

    type: Literal["text"]


class JsonObjectFormatOptions(TypedDict):
    """Any JSON object."""

    type: Literal["json_object"]


class JsonSchemaOptions(TypedDict, total=False):
    """A JSON schema, with a name if you like."""

    name: str | None
    description: str | None
    schema: Required[dict[str, Any]]
    strict: bool | None


class JsonSchemaFormatOptions(TypedDict):
    """A JSON value that a schema describes."""

    type: Literal["json_schema"]
    json_schema: JsonSchemaOptions


class DocumentFile(TypedDict):
    """A file that has a document, as OpenAI's client uploads it (``client.files.create``)."""

    file_id: str


class AnswerOptions(TypedDict, total=False):
    """Options of a question: a ``document`` or the id of an ``adaptation``, and how to answer."""

    document: str | DocumentFile | None
    adaptation: str | None
    context: ContextStrategy | None
    evidence: EvidenceOptions | None
    on_overflow: Literal["error", "truncate_middle", "passages"] | None
    adapt: AdaptOptions
    max_tokens: int | None
    temperature: float
    top_p: float
    stop: str | list[str]
    response_format: TextFormatOptions | JsonObjectFormatOptions | JsonSchemaFormatOptions | None
    guided_choice: list[str] | None
    seed: int
    compare_base: bool
    model: str | None
    priority: int
    timeout_seconds: float | None


class AdaptationOptions(TypedDict, total=False):
    """Options of a kept adaptation: how to adapt, and how long to keep the result."""

    on_overflow: Literal["error", "truncate_middle"]
    adapt: DocumentAdaptOptions
    queries: list[str]
    evidence: EvidenceOptions | None
    ttl_seconds: float | None
    name: str
    pinned: bool
    model: str | None
    priority: int
    timeout_seconds: float | None


class AdaptationChanges(TypedDict, total=False):
    """What changes of a kept adaptation: its name, and whether it is kept until it is deleted."""

    name: str
    pinned: bool


class TttOptions(TypedDict, total=False):
    """The field ``ttt`` of the OpenAI-compatible routes: ``extra_body`` of OpenAI's client has it.

    Example::

        ttt: TttOptions = {"document": text, "evidence": {"by": "bm25", "count": 2}}
        client.chat.completions.create(..., extra_body={"ttt": ttt})
    """

    document: str | DocumentFile | None
    context: ReadContext | None
    evidence: EvidenceOptions | None
    on_overflow: Literal["error", "truncate_middle", "passages"] | None
    adapt: DocumentAdaptOptions
