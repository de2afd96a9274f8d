"""Estimates of what work will cost, in seconds, from what recent work cost."""

from typing_extensions import override

from refine_server.server.engine.observer import EngineObserver
from refine_server.server.engine.scheduling.job import Job
from refine_server.ttt.interface.config import AdaptConfig, OnEvidence, OnQuerySpans, OnSpans
from refine_server.ttt.interface.events import (
    AdaptationStep,
    AnswerCompleted,
    CompletionEnded,
    DocumentRead,
    Event,
    PromptRead,
)
from refine_server.ttt.interface.requests import (
    AdaptRequest,
    AnswerRequest,
    CompletionRequest,
    Work,
)

EMA_WEIGHT = 0.2
"""Weight of the newest observation in a rate's moving average."""
EVIDENCE_TOKENS = 512
"""Tokens of the evidence that a step reads: four chunks of 128 tokens, where nothing else is
asked."""
MIN_PROMPT_TOKENS = 128
"""Reading a shorter prompt shows what any forward pass costs, not what a token costs."""


class Rate:
    """Seconds per unit of work: an exponential moving average that starts from a guess."""

    def __init__(self, guess: float) -> None:
        self.seconds = guess
        self._has_observed = False

    def observe(self, seconds: float, units: float) -> None:
        """Update the average with ``units`` that took ``seconds``."""
        if units <= 0:
            return
        weight = EMA_WEIGHT if self._has_observed else 1.0
        self._has_observed = True
        self.seconds += weight * (seconds / units - self.seconds)


class CostModel(EngineObserver):
    """Estimates work as tokens read + tokens stepped on + tokens decoded, each at its own rate.

    The worker's thread observes while the event loop estimates; a rate is one float.
    """

    def __init__(self) -> None:
        self.read = Rate(1 / 1000)
        self.step = Rate(1 / 300)
        self.decode = Rate(1 / 30)

    def estimate(self, work: Work, tokens: int) -> float:
        """Return the seconds of work whose document, query or prompts have ``tokens`` tokens."""
        seconds = tokens * self.read.seconds
        if isinstance(work, AdaptRequest | AnswerRequest):
            optimizer = work.adapt.optimizer
            seconds += optimizer.steps * step_tokens(work.adapt, tokens) * self.step.seconds
            if optimizer.max_seconds is not None:
                seconds = min(seconds, optimizer.max_seconds)
        if not isinstance(work, AdaptRequest):
            choices = len(work.prompts) * work.n if isinstance(work, CompletionRequest) else 1
            seconds += choices * work.sampling.max_tokens * self.decode.seconds
        return seconds

    @override
    def on_event(self, job: Job, event: Event) -> None:
        self.observe(job.work.request, job.tokens, event)

    def observe(self, work: Work, tokens: int, event: Event) -> None:
        """Update the rates with an event of some work that reads ``tokens`` tokens."""
        match event:
            case DocumentRead() if not event.is_cached:
                self.read.observe(event.seconds, event.document_tokens)
            case PromptRead() if event.tokens >= MIN_PROMPT_TOKENS and not event.echo:
                self.read.observe(event.seconds, event.tokens)
            case AdaptationStep(report) if isinstance(work, AdaptRequest | AnswerRequest):
                self.step.observe(report.seconds, step_tokens(work.adapt, tokens))
            case AnswerCompleted():
                seconds = event.timings.decode_seconds
                self.decode.observe(seconds, event.usage.completion_tokens)
            case CompletionEnded():
                self.decode.observe(event.timings.decode_seconds, event.completion_tokens)


def step_tokens(config: AdaptConfig, tokens: int) -> int:
    """Return the tokens that one step reads or samples, for a document of ``tokens`` tokens."""
    if config.objective == "none":
        return 0
    on, rollouts = config.on, config.rollouts
    read = tokens
    match on:
        case OnEvidence():
            read = min(EVIDENCE_TOKENS, tokens)
        case OnSpans() | OnQuerySpans():
            read = min(rollouts.positions * on.tokens, tokens)
            read += tokens * (on.ntp_on == "document")
            read += tokens * (on.kind == "query_spans" and on.learn_as == "answer_in_context")
    if config.objective == "ntp":
        return read
    branches = rollouts.per_position + rollouts.group  # sampled, then read
    return read + rollouts.positions * branches * rollouts.tokens
