"""What a run tells of itself where ``adapt.trace`` asks for it, as types."""

from typing import ClassVar, Literal

from refine_server.clients.wire import Event, WireObject


class TextSpan(WireObject):
    """A part of the document, in characters."""

    start: int
    end: int


class TracedTokens(WireObject):
    """Tokens as ids, and the text that each of them adds."""

    tokens: list[int]
    pieces: list[str]


class TracedRollout(TracedTokens):
    """A continuation that a step learned from; ``matches``: whether a token is the document's."""

    matches: list[bool]
    reward: float | None
    advantage: float | None
    is_demonstration: bool


class TracedPosition(WireObject):
    """A position of a step, the document's own continuation there, and the rollouts."""

    row: int
    token: int
    start: int | None
    end: int | None
    entropy: float | None
    own: TracedTokens
    rollouts: list[TracedRollout]


class LayerChange(WireObject):
    """How far a layer's weights are from the base weights; ``layer`` is None outside of layers."""

    layer: int | None
    change: float | None
    relative: float | None


class EvalResult(WireObject):
    """The evaluation after a step (0: of the base weights) on the document's held-out spans."""

    step: int
    loss: float | None
    accuracy: float
    seconds: float


class StepTrace(WireObject):
    """What a step did, position by position, and what it changed."""

    positions: list[TracedPosition]
    left_out: int
    weights: list[LayerChange]
    held_out: EvalResult | None


class DocumentTrace(Event):
    """The document as the model sees it before the steps or after them, in bins of tokens."""

    name: ClassVar[str] = "document.trace"
    stage: Literal["before", "after"]
    step: int
    tokens: int
    tokens_per_bin: int
    starts: list[int]
    ends: list[int]
    entropy: list[float | None]
    attention: list[float] | None
    attention_layers: list[int]
    evidence: list[TextSpan]
    evidence_attention: float | None
    spans: list[TextSpan]
    held_out: list[TextSpan]


class RunTrace(WireObject):
    """The document before and after an adaptation; ``after`` is None where the base answers."""

    before: DocumentTrace
    after: DocumentTrace | None
