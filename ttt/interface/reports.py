"""What an adaptation and an answer report of themselves: losses, rewards, tokens and seconds.

The same models are part of the HTTP contract's responses and of stored adaptations, so a new field
is declared here and nowhere else.
"""

from bisect import bisect_right
from collections.abc import Sequence
from typing import Any, Literal, Self

from refine_server.ttt.interface.measures import EvalResult, Measured, Report
from refine_server.ttt.interface.traces import StepTrace

AnsweredBy = Literal["base", "adapted", "kept_base"]
"""What answers: the base weights, as no adaptation was asked for; adapted weights; or the base
weights although an adaptation was asked for."""


class StepReport(Report):
    """One optimiser step. Losses and rewards are those of the weights before the step."""

    step: int
    """Number of the step, from 1 on."""
    loss: Measured
    """The weighted sum of the loss's terms."""
    ntp_loss: Measured
    """Next-token loss, in nats per token."""
    grpo_loss: Measured
    """Policy-gradient loss of the rollouts."""
    reward_mean: Measured
    """Mean reward of the rollouts, demonstrations not counted."""
    reward_std: Measured
    """Standard deviation of the rollouts' rewards."""
    entropy_mean: Measured
    """Mean entropy of the next token, in nats, over what rollouts start from."""
    kl: Measured
    """KL divergence from the unadapted policy on the rollouts; 0 when it has no coefficient."""
    attention: Measured
    """KL divergence of the question's attention from its target; 0 when it has no coefficient."""
    grad_norm: Measured
    """Norm of the gradient before it was clipped."""
    seconds: float
    """Time of the step; in a batch, the request's share of it."""
    rollout_tokens: int
    """Tokens of the step's rollouts, demonstrations not counted."""
    trace: StepTrace | None = None
    """What it did, position by position; null unless `adapt.trace` asks for it. It is not stored
    with a kept adaptation."""

    def without_trace(self) -> Self:
        """Return the report as it is kept: a trace may quote the document, so it is not."""
        return self.model_copy(update={"trace": None})


class AdaptationHistory(Report):
    """The steps of an adaptation, and which of them the answer uses."""

    objective: str
    """What was optimised: refine, ntp or none."""
    steps: tuple[StepReport, ...]
    """The steps that were made."""
    accepted_step: int
    """The step whose weights the answer uses; 0: the base weights."""
    stopped: str | None
    """Why fewer steps than requested were made; null when all were made."""
    first_ntp_loss: Measured | None
    """Next-token loss before the first step, on what the next-token loss reads."""
    final_ntp_loss: Measured | None
    """Next-token loss under the weights that the answer uses, on the same tokens."""
    fast_weight_bytes: int
    """Size in bytes of the fast weights that the answer uses."""
    held_out: tuple[EvalResult, ...] = ()
    """Held-out evaluations, the base weights first; empty without a guard."""


class AdaptationReport(AdaptationHistory):
    """How an adaptation ended."""

    kept_base_reason: str | None
    """Why the base weights answer although an adaptation was asked for; null where they do not."""

    @property
    def adapted(self) -> bool:
        """Whether the answer uses anything but the base weights."""
        return self.accepted_step > 0

    def without_traces(self) -> Self:
        """Return the report as it is kept, without the traces of its steps."""
        steps = tuple(step.without_trace() for step in self.steps)
        return self.model_copy(update={"steps": steps})

    def unused(self, reason: str) -> Self:
        """Return the report of the same steps, where an answer does not use what they made."""
        return self.model_copy(
            update={
                "accepted_step": 0,
                "kept_base_reason": reason,
                "final_ntp_loss": self.first_ntp_loss,
                "fast_weight_bytes": 0,
            }
        )

    @property
    def answered_by(self) -> AnsweredBy:
        """What answers with the result of the adaptation."""
        if self.adapted:
            return "adapted"
        return "base" if self.objective == "none" else "kept_base"


class Citation(Report):
    """A part of the document that the answer was aimed at."""

    start: int
    """Its first character in the document."""
    end: int
    """One beyond its last character."""
    text: str
    score: Measured | None
    """How well it fits the query by the measure that chose it; null where the client named it."""
    page: int | None = None
    """The page that it begins on, from 1 on; null where the document has no pages."""


class Quote(Report):
    """Words of the answer, in the document."""

    start: int
    """Their first character in the document."""
    end: int
    """One beyond their last character."""
    text: str
    page: int | None = None
    """The page that they begin on, from 1 on; null where the document has no pages."""


def page_of(character: int, pages: Sequence[int]) -> int | None:
    """Return the number of the page that a character is on; None where there are no pages.

    Args:
        character: of the document.
        pages: first character of each page; the first one is 0.
    """
    return bisect_right(pages, character) if pages else None


class LeftOut(Report):
    """A part of the document that was not read."""

    start: int
    """Its first character in the document."""
    end: int
    """One beyond its last character."""


class Overflow(Report):
    """How a document that was too long to be read as a whole was shortened."""

    handled: Literal["truncate_middle", "passages"]
    """What was done: its middle was cut out, or the passages were read that fit the query best."""
    sent_tokens: int
    """Tokens of the document that was sent."""
    read_tokens: int
    """Tokens of what was read of it."""
    left_out: tuple[LeftOut, ...]
    """The parts that were not read, in the document's order."""


def overflow_of(description: dict[str, Any]) -> Overflow | None:
    """Read how a stored document was shortened; None where it was not."""
    overflow = description.get("overflow")  # documents of version 0.3 have none
    return None if overflow is None else Overflow.model_validate(overflow)


class Usage(Report):
    """Token counts of one answer."""

    document_tokens: int
    """Tokens of what was read of the document."""
    query_tokens: int
    completion_tokens: int
    rollout_tokens: int
    """Tokens of the rollouts of all steps."""


class Timings(Report):
    """Wall-clock seconds of each phase of one answer; they include turns of other requests."""

    prefill_seconds: float
    """Reading of the document or the prompts."""
    adapt_seconds: float
    """The adaptation's steps, and reading the document under their weights."""
    judge_seconds: float
    """Evaluation of the adaptation's weights on held-out spans of the document."""
    decode_seconds: float
    """Reading of the query, and the answer's tokens."""
    time_to_first_token_seconds: float
    """Time from leaving the queue to the first token."""
