"""What an adaptation and an answer report of themselves: losses, rewards, tokens and seconds."""

from dataclasses import dataclass
from typing import Any


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
