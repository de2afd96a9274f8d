"""What a run tells of itself where ``adapt.trace`` asks for it: the document as the model sees it,
and each step position by position.

Characters are code points of the document that the client sent. Values are binned and rounded, so
that a trace has a bounded size whatever the document's length.
"""

from typing import Literal

from refine_server.ttt.interface.measures import EvalResult, Measured, Report

MAX_BINS = 4096
"""The most bins that a document's tokens are counted in."""
MAX_ROLLOUT_TOKENS = 65_536
"""The most tokens of rollouts that the traces of a run list, divided evenly among its steps."""


class TextSpan(Report):
    """A part of the document."""

    start: int
    """Its first character in the document."""
    end: int
    """One beyond its last character."""


class TracedTokens(Report):
    """Tokens, as ids and as text."""

    tokens: tuple[int, ...]
    pieces: tuple[str, ...]
    """The text that each token adds; joined they are the whole text. A token that ends within a
    character adds nothing, and the token that completes the character has all of it."""


class TracedRollout(TracedTokens):
    """A continuation that the step learned from."""

    matches: tuple[bool, ...]
    """Whether each token is the document's own."""
    reward: Measured
    advantage: Measured
    """The reward's distance from the mean of its group, in standard deviations of the group."""
    is_demonstration: bool
    """Whether it is the document's own continuation and not a sample."""


class TracedPosition(Report):
    """A position of a step, and the rollouts that start there."""

    row: int
    """Row of tokens that the rollouts start in: 0 for a document, the span's number for spans."""
    token: int
    """Number in that row of the first token that a rollout predicts, from 0 on."""
    start: int | None
    """First character of the document's own continuation; null where it is not in the document."""
    end: int | None
    """One beyond its last character."""
    entropy: Measured
    """Entropy in nats of the distribution that predicts this token."""
    own: TracedTokens
    """The document's own continuation."""
    rollouts: tuple[TracedRollout, ...]
    """What the model wrote instead, and the document's own continuation as the last one if it is a
    demonstration."""


class LayerChange(Report):
    """How far the weights of a layer are from the base weights."""

    layer: int | None
    """Number of the layer, from 0 on; null for weights outside of all layers."""
    change: Measured
    """Frobenius norm of the change, in effect: of A B where a LoRA is adapted."""
    relative: Measured | None
    """The change as a share of the norm of the base weights that it is added to; null where it is
    added to no weights of the base model."""


class StepTrace(Report):
    """What a step did, position by position, and what it changed."""

    positions: tuple[TracedPosition, ...]
    """Empty without rollouts."""
    left_out: int
    """Number of positions that are not listed, because a run lists 65,536 tokens of rollouts."""
    weights: tuple[LayerChange, ...]
    """The change of each layer's weights after the step."""
    held_out: EvalResult | None
    """The evaluation that was made in this step, of the weights before it; null where none was."""


class DocumentTrace(Report):
    """The document as the model sees it before the first step, or with the adapted weights."""

    stage: Literal["before", "after"]
    step: int
    """The step that made the weights; 0: the base weights."""
    tokens: int
    """Tokens of what is read of the document."""
    tokens_per_bin: int
    """Tokens that are counted together, so that there are at most 4,096 bins."""
    starts: tuple[int, ...]
    """First character of each bin."""
    ends: tuple[int, ...]
    """One beyond the last character of each bin."""
    entropy: tuple[float | None, ...]
    """Mean entropy in nats of the distributions that predict the tokens of each bin, to three
    decimals. Null for a bin that nothing predicts, and after an adaptation on evidence for all but
    the evidence, which alone is read under the adapted weights."""
    attention: tuple[float, ...] | None
    """Share of the question's attention that falls on each bin, to four significant digits.
    Attention sinks are left out. Null where the model has no attention to the whole document, or
    there is no question."""
    attention_layers: tuple[int, ...]
    """Layers whose attention it is, a mean over them and over their heads: the upper half of those
    that have attention to the whole document."""
    evidence: tuple[TextSpan, ...]
    """What the adaptation is aimed at."""
    evidence_attention: Measured | None
    """Share of the question's attention that falls on the evidence; null without one of both."""
    spans: tuple[TextSpan, ...]
    """What the steps read; empty where it is the whole document."""
    held_out: tuple[TextSpan, ...]
    """What is held out of the loss, to evaluate the weights on."""


class RunTrace(Report):
    """The document before and after an adaptation; the report has the trace of each step."""

    before: DocumentTrace
    after: DocumentTrace | None
    """Null where no adapted weights were to answer."""
