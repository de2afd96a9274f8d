"""What work will cost, in seconds, from what recent work did cost."""

from refine_server.ttt.interface.config import AdaptConfig
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

MEMORY = 0.2
"""Weight of the newest observation in a rate's moving average."""
LEAST_READ = 128
"""Shorter prompts tell what any forward costs, not what a token does."""


class Rate:
    """Seconds for one unit of work: a moving average that begins with a guess."""

    def __init__(self, guess: float) -> None:
        self.seconds = guess
        self._seen = False

    def observe(self, seconds: float, units: float) -> None:
        """Take in that ``units`` took ``seconds``."""
        if units <= 0:
            return
        weight = MEMORY if self._seen else 1.0
        self._seen = True
        self.seconds += weight * (seconds / units - self.seconds)


class CostModel:
    """Estimates work as tokens read + tokens stepped on + tokens decoded, each at its own rate."""

    def __init__(self) -> None:
        self.read = Rate(1 / 1000)
        self.step = Rate(1 / 300)
        self.decode = Rate(1 / 30)

    def estimate(self, work: Work, tokens: int) -> float:
        """Seconds that work takes that reads a document, a query or prompts of so many tokens."""
        seconds = tokens * self.read.seconds
        if isinstance(work, AdaptRequest | AnswerRequest):
            seconds += work.adapt.steps * step_tokens(work.adapt, tokens) * self.step.seconds
            if work.adapt.max_seconds is not None:
                seconds = min(seconds, work.adapt.max_seconds)
        if not isinstance(work, AdaptRequest):
            choices = len(work.prompts) * work.n if isinstance(work, CompletionRequest) else 1
            seconds += choices * work.sampling.max_tokens * self.decode.seconds
        return seconds

    def observe(self, work: Work, tokens: int, event: Event) -> None:
        """Learn from an event of some work."""
        match event:
            case DocumentRead():
                self.read.observe(event.seconds, tokens)
            case PromptRead() if event.tokens >= LEAST_READ and not event.echo:
                self.read.observe(event.seconds, event.tokens)
            case AdaptationStep(report) if isinstance(work, AdaptRequest | AnswerRequest):
                self.step.observe(report.seconds, step_tokens(work.adapt, tokens))
            case AnswerCompleted():
                seconds = event.timings.decode_seconds
                self.decode.observe(seconds, event.usage.completion_tokens)
            case CompletionEnded():
                self.decode.observe(event.timings.decode_seconds, event.completion_tokens)


def step_tokens(config: AdaptConfig, tokens: int) -> int:
    """Tokens that one step reads or samples, for a document of so many tokens."""
    if config.objective == "none":
        return 0
    spans = config.prefix == "local"
    read = min(config.chunks * config.span_tokens, tokens) if spans else tokens
    if spans:
        read += tokens * (config.ntp_on == "document")
        read += tokens * (config.spans_as == "answer_in_context")
    if config.objective == "ntp":
        return read
    sampled = config.chunks * config.rollouts * config.rollout_tokens
    branches = config.chunks * config.group * config.rollout_tokens
    return read + sampled + branches
