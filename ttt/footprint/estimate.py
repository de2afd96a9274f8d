"""Predict the memory that a request takes at its peak."""

import threading
from collections.abc import Sequence

from refine_server.ttt.document_adaptation import DocumentAdaptation
from refine_server.ttt.footprint.peaks import (
    MEASURED_TOKENS,
    AdaptationPeak,
    Growth,
    adaptation_peak,
    state_growth,
)
from refine_server.ttt.interface.config import AdaptConfig, OnSpans, Targets
from refine_server.ttt.models.base import CausalLM
from refine_server.ttt.programs.encode import EncodedAnswer, EncodedAsk, EncodedWork
from refine_server.ttt.programs.encode_adaptation import EncodedAdapt, EncodedQueryAdapt
from refine_server.ttt.programs.encode_completion import EncodedCompletion

STATES_WHILE_READING = 2
"""Each piece of a document is joined with the state of what was read before, which is copied."""
FAST_WEIGHT_COPIES = 5
"""Fast weights, their gradient, AdamW's two moments, and the best of them so far."""
MARGIN = 1.15
"""What malloc cannot use of freed memory comes on top of what is alive: up to 15 % were seen."""


class PeakEstimator:
    """Predicts from a few measurements of the model, which are made when they are first needed.

    Any thread may call any method. Measuring an adaptation takes seconds on a large model, and
    requests that do not adapt do not wait for it.

    Args:
        model: whose weights are loaded, or on the meta device.
        lengths: of the two documents that are measured, in tokens.
    """

    def __init__(self, model: CausalLM, lengths: Sequence[int] = MEASURED_TOKENS) -> None:
        self._model, self._lengths = model, lengths
        self._adaptations: dict[Targets, AdaptationPeak] = {}
        self._state: Growth | None = None
        self._measuring_state = threading.Lock()
        self._measuring_adaptation = threading.Lock()

    def estimate(self, work: EncodedWork) -> int:
        """Return the bytes that encoded work takes at its peak, beside the base weights."""
        match work:
            case EncodedAnswer() if work.keeps_state:
                aim = sum(end - start for start, end in work.context.aim)
                queries = 0.0
                if work.request.adapt.objective != "none":
                    queries = self.adaptation(aim, work.request.adapt)
                answer = self._state_of(len(work.query) + work.request.sampling.max_tokens)
                peak = self._reading(work.tokens) + answer + queries
            case EncodedAnswer():
                tokens = work.tokens + len(work.query)
                peak = self.adaptation(tokens, work.request.adapt)
                if work.request.compare_base:
                    peak += self._state_of(tokens)
            case EncodedQueryAdapt():
                aim = sum(end - start for context in work.contexts for start, end in context.aim)
                peak = self._reading(work.tokens) + self.adaptation(aim, work.request.adapt)
            case EncodedAdapt():
                peak = self.adaptation(work.tokens, work.request.adapt)
            case EncodedAsk():
                kept = work.request.adapted
                read = kept.read_tokens if isinstance(kept, DocumentAdaptation) else 0
                tokens = work.tokens + work.request.sampling.max_tokens
                peak = self._reading(read) + self._state_of(tokens)
            case EncodedCompletion():
                choices = len(work.prompts) * work.request.n
                tokens = work.prompt_tokens + choices * work.request.sampling.max_tokens
                peak = self._reading(work.document_tokens) + self._state_of(tokens)
        return int(MARGIN * peak)

    def adaptation(self, tokens: int, config: AdaptConfig) -> float:
        """Return the bytes that an adaptation takes.

        Args:
            tokens: of the document, or of the evidence where the adaptation is on evidence.
            config: its settings.
        """
        if config.objective == "none":
            return self._reading(tokens)
        own, rollouts = self._of(config.fast_weights.targets), config.rollouts
        sampled = rollouts.positions * rollouts.group * rollouts.tokens
        in_graph = None
        if isinstance(config.on, OnSpans):
            in_graph = min(tokens, rollouts.positions * config.on.tokens)
        budget = self._model.activation_budget
        weights = FAST_WEIGHT_COPIES * self._fast_weight_bytes(config)
        return own.at(tokens, budget, in_graph) + own.peak.per_token * sampled + weights

    def _fast_weight_bytes(self, config: AdaptConfig) -> int:
        own = config.fast_weights
        if own.targets == "all":
            return self._model.num_parameters * max(self._model.dtype.itemsize, 4)
        return self._model.new_fast_weights(own.targets, own.rank, 0).nbytes

    def _reading(self, tokens: int) -> float:
        return STATES_WHILE_READING * self._state_of(tokens)

    def _state_of(self, tokens: int) -> float:
        with self._measuring_state:
            if self._state is None:
                self._state = state_growth(self._model)
            return self._state.at(tokens)

    def _of(self, targets: Targets) -> AdaptationPeak:
        with self._measuring_adaptation:
            if targets not in self._adaptations:
                chosen = {"fast_weights": {"targets": targets}}
                on_evidence = {"on": {"kind": "evidence"}} if targets == "queries" else {}
                config = AdaptConfig.model_validate(chosen | on_evidence)
                self._adaptations[targets] = adaptation_peak(self._model, config, self._lengths)
            return self._adaptations[targets]
