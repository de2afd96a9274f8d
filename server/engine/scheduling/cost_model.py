"""Estimates of what work will cost, in seconds, from what recent work cost."""

from collections.abc import Iterator

from typing_extensions import override

from refine_server.server.engine.backend.protocol import Backend
from refine_server.server.engine.observer import EngineObserver
from refine_server.server.engine.scheduling.estimate import Estimate
from refine_server.server.engine.scheduling.job import Job
from refine_server.ttt.batching import stream
from refine_server.ttt.interface.config import (
    AdaptConfig,
    OnEvidence,
    OnQuerySpans,
    OnSpans,
    OptimizerConfig,
    SamplingConfig,
)
from refine_server.ttt.interface.errors import RequestError
from refine_server.ttt.interface.events import (
    AdaptationStep,
    AnswerCompleted,
    CompletionEnded,
    DocumentRead,
    Event,
    PromptRead,
    never_stop,
)
from refine_server.ttt.interface.requests import (
    AdaptRequest,
    AnswerRequest,
    AskRequest,
    CompletionRequest,
    Work,
)

TYPICAL_TOKENS = 64.0
"""Tokens of an answer, as long as none was seen."""
EMA_WEIGHT = 0.2
"""Weight of the newest observation in a rate's moving average."""
EVIDENCE_TOKENS = 512
"""Tokens of the evidence that a step reads: four chunks of 128 tokens, where nothing else is
asked."""
MIN_PROMPT_TOKENS = 128
"""Reading a shorter prompt shows what any forward pass costs, not what a token costs."""
WARM_UP = AnswerRequest(
    document="The harbour master wrote down which boats came in, and which did not. " * 16,
    query="What did he write down?",
    adapt=AdaptConfig(optimizer=OptimizerConfig(steps=1), guard="none"),
    sampling=SamplingConfig(max_tokens=16, ignore_eos=True),
)
"""Work by which the first rates are measured: some 250 tokens are read, stepped on once, and read
again, and 16 are decoded."""


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

    The worker's thread observes while the event loop estimates; a rate is one float. The first
    rates are measured when the model is opened, so that a cold server knows what it can do.
    """

    def __init__(self) -> None:
        self.read = Rate(1 / 1000)
        self.step = Rate(1 / 300)
        self.decode = Rate(1 / 30)
        self.answer_tokens = Rate(TYPICAL_TOKENS)
        """Tokens of a continuation: most end long before the length that they may have."""

    def estimate(self, work: Work, tokens: int, memory_bytes: int = 0) -> Estimate:
        """Estimate work whose document, query or prompts have ``tokens`` tokens.

        Args:
            work: what is asked for.
            tokens: of its document, query or prompts.
            memory_bytes: what it takes at its peak, as the backend predicts it.
        """
        read = tokens * self.read.seconds
        adapt, again, continuations = 0.0, 0.0, 1
        match work:
            case AdaptRequest() | AnswerRequest():
                optimizer = work.adapt.optimizer
                step = step_tokens(work.adapt, tokens) * self.step.seconds
                adapt = optimizer.steps * step
                if optimizer.max_seconds is not None:
                    adapt = min(adapt, optimizer.max_seconds)
                # A document is read once more under weights that its state depends on.
                again = read if adapt and work.adapt.on.kind != "evidence" else 0.0
                continuations = answers_to(work)
            case CompletionRequest():
                continuations = len(work.prompts) * work.n
        decode = 0.0
        if not isinstance(work, AdaptRequest):
            length = min(work.sampling.max_tokens, 2 * self.answer_tokens.seconds)
            decode = continuations * length * self.decode.seconds
        return Estimate(
            read=read, adapt=adapt, reread=again, decode=decode, memory_bytes=memory_bytes
        )

    @override
    def on_opened(self, backend: Backend) -> None:
        """Measure the first rates; what the settings do not let be measured stays guessed."""
        try:
            work = backend.encode(WARM_UP)
        except RequestError:
            return
        events: Iterator[Event] = stream(lambda emit: backend.start(work, emit, never_stop))
        for event in events:
            self.observe(WARM_UP, work.tokens, event)
        self.answer_tokens = Rate(TYPICAL_TOKENS)

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
            case AnswerCompleted() if (
                isinstance(work, AnswerRequest | AskRequest) and answers_to(work) == 1
            ):
                seconds, length = event.timings.decode_seconds, event.usage.completion_tokens
                self.decode.observe(seconds, length)
                self.answer_tokens.observe(length, 1)
            case CompletionEnded() if isinstance(work, CompletionRequest):
                self.decode.observe(event.timings.decode_seconds, event.completion_tokens)
                self.answer_tokens.observe(event.completion_tokens, len(work.prompts) * work.n)


def answers_to(work: AdaptRequest | AnswerRequest | AskRequest) -> int:
    """Return how many answers are decoded, of which the likeliest is given."""
    if isinstance(work, AdaptRequest):
        return 0
    if isinstance(work, AskRequest):
        return 1
    ways = 3 if work.context == "best" else 1
    is_guarded = work.adapt.objective != "none" and work.adapt.guard == "answer"
    return 2 * ways if is_guarded else ways


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
