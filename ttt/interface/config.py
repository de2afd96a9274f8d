"""What one adaptation and one answer do: the settings of the REFINE loop and of decoding.

The same models are the ``adapt`` object of the HTTP contract. A setting belongs to the group or to
the kind of ``on`` that it applies to, so a combination that makes no sense cannot be written, and
an unknown or out-of-range field is refused by name before any work is done.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import ConfigDict, Field, model_validator

from refine_server.ttt.interface.output_format import OutputFormat
from refine_server.ttt.interface.presets import PRESETS, Preset
from refine_server.ttt.interface.strict import StrictModel

Objective = Literal["refine", "ntp", "attention", "none"]
Selection = Literal["entropy", "surprise", "uniform", "argmax", "argmin"]
Reward = Literal["exact", "cosine", "hybrid"]
Targets = Literal["fast_weights", "low_rank", "queries", "all"]
Guard = Literal["held_out", "answer", "none"]

MAX_BRANCHES = 512
"""Most continuations in one step: they are read as one batch, in memory that requests share."""
MAX_ANSWER_TOKENS = 2**20
"""Longest answer, in tokens, that any server allows; a server's own limit is mostly lower."""

LOWEST_TEMPERATURE = 1e-5
"""Below it the likeliest token is taken, as at 0: logits divided by less leave fp32's range."""

Temperature = Annotated[
    float,
    Field(
        ge=0.0,
        le=4.0,
        description=f"0 decodes greedily, and so does anything below {LOWEST_TEMPERATURE}.",
    ),
]
TopP = Annotated[
    float,
    Field(
        gt=0.0, le=1.0, description="Sample from the likeliest tokens of this total probability."
    ),
]


class _Settings(StrictModel):
    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)


class _On(_Settings):
    model_config = ConfigDict(json_schema_extra={"required": ["kind"]})


class OnDocument(_On):
    """Adapt on the whole document, as the paper does: rollouts branch from it."""

    kind: Literal["document"] = "document"


class OnPrompt(_On):
    """Adapt on the whole prompt, the document and the query behind it, as the paper's code does.

    The next-token loss and the rollouts read both. The query is answered as ever: from the
    document's state under the adapted weights.
    """

    kind: Literal["prompt"] = "prompt"


class _Spans(_On):
    kind: Literal["spans", "query_spans"]
    tokens: int = Field(32, ge=8, le=512)
    """Length of a span, in tokens. At least twice `rollouts.tokens`."""
    ntp_on: Literal["spans", "document"] = "spans"
    """What the next-token loss reads."""


class OnSpans(_Spans):
    """Adapt on short spans of the document, each a sequence of its own.

    There are `rollouts.positions` spans at most, with one rollout position in each.
    """

    kind: Literal["spans"] = "spans"
    choose: Selection = "entropy"
    """The spans around the tokens of highest entropy or surprise (both averaged over neighbours),
    at random (`uniform`), or around those of highest (`argmax`) or lowest (`argmin`) entropy."""


class OnQuerySpans(_Spans):
    """Adapt on the spans of the document that are most similar to the query (BM25).

    There are `rollouts.positions` spans at most.
    """

    kind: Literal["query_spans"] = "query_spans"
    learn_as: Literal["text", "answer", "answer_in_context"] = "text"
    """`text`: each span is a sequence of its own. `answer`: the spans, as whole sentences and in
    the document's order, are the answer to the query, asked without the document.
    `answer_in_context`: the same, asked after the document, so that a step reads all of it."""


class OnEvidence(_On):
    """Adapt on the evidence for the query, over the document's frozen state.

    The document is read once, by the base model. Only query projections adapt, so that nothing of
    what was read changes, and a step costs the evidence's tokens whatever the document's length.
    """

    kind: Literal["evidence"] = "evidence"


class RolloutConfig(_Settings):
    """The rollouts of a step (arXiv 2602.16704, section 3)."""

    positions: int = Field(8, ge=1, le=128)
    """c: rollout positions, one in each equal chunk of the document, or in each span."""
    per_position: int = Field(1, ge=1, le=32)
    """n: rollouts from each position."""
    tokens: int = Field(5, ge=1, le=64)
    """k: tokens of a rollout."""
    temperature: float = Field(1.0, ge=0.01, le=4.0)
    """tau: sampling temperature of the rollouts. The gradient of their log-probabilities grows with
    1 / tau."""
    select: Selection = "entropy"
    """How a position is chosen in its chunk: sampled by entropy or by surprise, evenly
    (`uniform`), or where entropy is highest (`argmax`) or lowest (`argmin`)."""
    reward: Reward = "exact"
    """Share of tokens that equal the document's (`exact`), cosine similarity of hidden states
    (`cosine`), or both (`hybrid`)."""
    demonstration: bool = False
    """Whether the document's own continuation joins the rollouts of each position (not in the
    paper). It earns the full reward, so that a group has a gradient where no rollout is right."""

    @property
    def group(self) -> int:
        """Continuations of one position: n rollouts, and the demonstration if there is one."""
        return self.per_position + self.demonstration

    @model_validator(mode="after")
    def _fit_into_a_batch(self) -> Self:
        if self.positions * self.group > MAX_BRANCHES:
            group = "(per_position + 1)" if self.demonstration else "per_position"
            raise ValueError(
                f"positions * {group} must be at most {MAX_BRANCHES}, as all rollouts of a step "
                "are one batch"
            )
        return self


class LossConfig(_Settings):
    """Coefficients of the three terms of the loss."""

    ntp: float = Field(1.0, ge=0.0, le=10.0)
    """Next-token loss."""
    grpo: float = Field(0.4, ge=0.0, le=10.0)
    """Policy-gradient loss of the rollouts (GRPO)."""
    kl: float = Field(0.0, ge=0.0, le=10.0)
    """KL divergence from the unadapted policy, on the rollouts."""
    attention: float = Field(0.0, ge=0.0, le=10.0)
    """KL divergence from the question's attention to a target that lies on the evidence."""


class OptimizerConfig(_Settings):
    """AdamW over the request's own fast weights, and when to stop."""

    steps: int = Field(8, ge=1, le=256)
    """Optimiser steps."""
    learning_rate: float = Field(6e-3, gt=0.0, le=10.0)
    """Learning rate, the same in every step."""
    weight_decay: float = Field(0.0, ge=0.0, le=1.0)
    """Share of the learning rate by which every adapted weight shrinks in a step, as in AdamW."""
    max_grad_norm: float = Field(1.0, gt=0.0, le=1e4)
    """Norm to which a larger gradient is scaled down."""
    max_seconds: float | None = Field(None, gt=0.0, le=3600.0)
    """Most seconds of the adaptation, judging its weights included. A step that would take longer
    is left within a segment, and the best weights so far are kept."""


class FastWeightConfig(_Settings):
    """The weights that the request owns and steps."""

    targets: Targets = "low_rank"
    """`low_rank`: LoRA on the base weights; `queries`: LoRA on the query projections only;
    `fast_weights`: the family's own fast weights; `all`: a full copy of the base weights.
    Where `on` is the evidence it is `queries`, and it is `queries` nowhere else."""
    rank: int = Field(8, ge=1, le=256)
    """Rank of the LoRA."""


class AdaptConfig(_Settings):
    """Settings of one adaptation (arXiv 2602.16704, section 3; c, n, k and tau as in the paper).

    The defaults of rollouts and loss are the paper's test-time setting; targets, rank, steps and
    learning rate were chosen by experiments with the bundled model (benchmarks/README.md). On
    held-out questions they were not shown to answer better than the unadapted model, nor, with the
    guard, worse. `on` query spans, learned as the query's answer, improves answers (needles in
    context from 57 to 91 of 100, 24 documents; benchmarks/results/adaptation.md); it needs the
    query, so it is not the default.
    """

    preset: Preset | None = None
    """A set of settings by name, which the other fields override. `fast`: two steps on the
    evidence for the query. `balanced`: eight of them. `thorough`: sixteen steps on the whole
    document, with a guard; needs no query. `paper`: the test-time training of arXiv 2602.16704, one
    step on all weights over the document and the query. The settings themselves take its place, so
    that it is null in what the server returns."""
    objective: Objective = "refine"
    """`refine`: GRPO on rollouts and next-token loss; `ntp`: next-token loss only; `none`: do not
    adapt, answer from the base weights."""
    on: Annotated[
        OnDocument | OnSpans | OnQuerySpans | OnPrompt | OnEvidence, Field(discriminator="kind")
    ] = OnDocument()
    """What a step reads: the document, spans of it, spans of it that the query asks about, the
    document and the query, or the evidence for the query."""
    rollouts: RolloutConfig = RolloutConfig()
    loss: LossConfig = LossConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    fast_weights: FastWeightConfig = FastWeightConfig()
    guard: Guard = "held_out"
    """`held_out`: spans of the document are kept out of the loss; the answer comes from the step
    that did best on them, from the base weights if no step did better, and steps end early
    when several in a row bring no improvement. `none`: all steps are made and the answer comes from
    the last. `answer`, where `on` is the evidence, of which nothing is held out, and the default
    there: the base weights answer too, and their answer is given unless the base model finds the
    adapted one likelier behind the evidence alone; nothing of it is streamed before. Non-finite
    values always fall back to the base weights."""
    seed: int = Field(0, ge=0, lt=2**63)
    """Random seed of positions, rollouts, held-out spans and the fast weights' initial values."""
    trace: bool = False
    """Report how the model sees the document before and after the adaptation, and what each step
    does: where its rollouts start, their tokens, rewards and advantages, and the change of each
    layer. It takes up to two more readings of the document, and changes nothing else."""

    @model_validator(mode="before")
    @classmethod
    def _evidence_adapts_queries(cls, settings: Any) -> Any:
        """Fill in ``targets`` and ``guard`` where the evidence is adapted on, unless given."""
        if not isinstance(settings, Mapping) or _kind_of(settings.get("on")) != "evidence":
            return settings
        weights = settings.get("fast_weights", {})
        if isinstance(weights, FastWeightConfig):
            weights = weights.model_dump(exclude_unset=True)
        if not isinstance(weights, Mapping):
            return settings
        return {"guard": "answer", **settings, "fast_weights": {"targets": "queries", **weights}}

    @model_validator(mode="before")
    @classmethod
    def _start_from_preset(cls, settings: Any) -> Any:
        """Put the settings of a preset in its place; fields that are given override them.

        Among the validators that run before the fields are read, the last one defined runs first.
        """
        if not isinstance(settings, Mapping) or not isinstance(settings.get("preset"), str):
            return settings
        given = dict(settings)
        chosen = PRESETS.get(given["preset"])
        if chosen is None:
            return settings  # refused by the field's type
        del given["preset"]
        for name in chosen.keys() & given.keys() - {"on"}:
            if isinstance(group := given[name], _Settings):
                given[name] = group.model_dump(exclude_unset=True)
        return merged(chosen, given)

    @model_validator(mode="after")
    def _queries_only_on_evidence(self) -> Self:
        on_evidence, queries = self.on.kind == "evidence", self.fast_weights.targets == "queries"
        if on_evidence and not queries:
            raise ValueError("fast_weights.targets must be queries where on.kind is evidence")
        if queries and not on_evidence:
            raise ValueError("fast_weights.targets can be queries only where on.kind is evidence")
        if on_evidence and self.guard == "held_out":
            raise ValueError(
                "guard must be answer or none where on.kind is evidence: nothing is held out of it"
            )
        if not on_evidence and self.guard == "answer":
            raise ValueError("guard can be answer only where on.kind is evidence")
        if not on_evidence and (self.objective == "attention" or self.loss.attention):
            raise ValueError("attention needs on.kind evidence, which it is aimed at")
        if self.objective == "attention" and not self.loss.attention:
            raise ValueError("objective attention needs a coefficient loss.attention above 0")
        return self

    @model_validator(mode="after")
    def _spans_hold_rollouts(self) -> Self:
        if isinstance(self.on, _Spans) and self.on.tokens < 2 * self.rollouts.tokens:
            raise ValueError(
                "on.tokens must be at least twice rollouts.tokens, as a rollout needs as many "
                "tokens of the span before it"
            )
        return self

    def updated(self, **changes: Any) -> Self:
        """Return these settings with some fields changed, validated again.

        Args:
            changes: by field. A mapping changes only the fields of the group that it names; for
                `on` of another kind, the others take that kind's defaults.
        """
        return self.model_validate(merged(self.model_dump(), changes))


class DocumentAdaptConfig(AdaptConfig):
    """Settings of an adaptation that is kept for later queries.

    The presets `fast` and `balanced` need queries that are expected, or evidence that is named. The
    preset `paper` adapts on the query as well; beside it, `on` has to be given.
    """

    on: Annotated[OnDocument | OnSpans | OnEvidence, Field(discriminator="kind")] = OnDocument()
    """What a step reads: the document, spans of it, or the evidence for queries that are expected.
    An adaptation on evidence keeps its query projections only, under 1 MB, and the document's
    text; the document itself stays as the base model reads it."""


def merged(settings: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings of an adaptation, as nested mappings, with some fields changed.

    A group keeps the fields that its change does not name. ``on`` of another kind keeps none.
    """
    result = dict(settings)
    kind = _kind_of(changes.get("on"))
    if kind is not None and (kind == "evidence") != (_kind_of(settings.get("on")) == "evidence"):
        weights = settings.get("fast_weights")
        if isinstance(weights, Mapping):  # what is adapted on evidence is not adapted elsewhere
            own = {name: value for name, value in weights.items() if name != "targets"}
            rest = {name: value for name, value in settings.items() if name != "guard"}
            settings = result = {**rest, "fast_weights": own}
    for name, change in changes.items():
        group = settings.get(name)
        if isinstance(group, Mapping) and isinstance(change, Mapping):
            same_kind = change.get("kind", group.get("kind")) == group.get("kind")
            change = {**(group if same_kind else {}), **change}
        result[name] = change
    return result


def _kind_of(on: object) -> object:
    """Return the kind of ``on``, a model or a mapping; None if it has none."""
    return on.get("kind") if isinstance(on, Mapping) else getattr(on, "kind", None)


class SamplingConfig(_Settings):
    """How an answer is decoded."""

    max_tokens: int = Field(64, ge=0, le=MAX_ANSWER_TOKENS)
    """Longest answer, in tokens. 0 only reads."""
    temperature: Temperature = 0.0
    top_p: TopP = 1.0
    stop: tuple[str, ...] = Field((), max_length=16)
    """The answer ends before any of these."""
    ignore_eos: bool = False
    """Whether to go on after a token that ends answers."""
    form: OutputFormat | None = None
    """The form that the answer is held to; None: any."""
    seed: int = Field(0, ge=0, lt=2**63)
    """Random seed of the sampled tokens."""

    @property
    def is_greedy(self) -> bool:
        """Whether the likeliest token is always taken."""
        return self.temperature < LOWEST_TEMPERATURE
