"""The memory that reading a document and adapting to it take at their peak, by its length.

Both are measured on two short documents, by the code that serves requests, and grow by the same
bytes with every token.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from refine_server.ttt.fast_weights import FastWeights
from refine_server.ttt.footprint.live_bytes import LiveBytes
from refine_server.ttt.interface.config import AdaptConfig, RolloutConfig
from refine_server.ttt.models.base import CausalLM
from refine_server.ttt.models.segments import PROBE_TOKENS, activation_bytes, key_of
from refine_server.ttt.models.tape import tensors_of
from refine_server.ttt.models.trunk import Frozen
from refine_server.ttt.pieces import run_pieces
from refine_server.ttt.query_side.frozen_document import SNAPSHOT_TOKENS
from refine_server.ttt.refine.inputs.rows import Rows
from refine_server.ttt.refine.loop import choose_weights, prepare
from refine_server.ttt.refine.step import AdaptationRun, AdaptStep, StepDone, StepRejected

MEASURED_TOKENS = (128, 256)
"""Lengths of the documents that are measured."""
FEW_ROLLOUTS = RolloutConfig(positions=2, tokens=1)
"""Rollouts of the measured step; more are added as tokens that the step reads."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Growth:
    """Bytes that grow by the same number with every token."""

    fixed: float
    per_token: float

    @classmethod
    def of(cls, lengths: Sequence[int], sizes: Sequence[int]) -> "Growth":
        """Fit the bytes at two lengths, in tokens."""
        (short, long), (less, more) = lengths, sizes
        per_token = max(more - less, 0) / (long - short)
        return cls(fixed=max(less - per_token * short, 0.0), per_token=per_token)

    def at(self, tokens: float) -> float:
        """Return the bytes at a length in tokens."""
        return self.fixed + self.per_token * tokens


@dataclass(frozen=True, kw_only=True, slots=True)
class AdaptationPeak:
    """What an adaptation to a whole document takes beside the base weights."""

    peak: Growth
    """All of it, by the document's tokens, where nothing is recomputed."""
    activations: float
    """Bytes a token, of these, that only wait for the backward pass."""
    traces: float
    """Bytes a token, of the activations, that branches start from: they are kept even where the
    activation budget has the rest computed again."""

    def at(self, tokens: float, budget: int | None, steps: float | None = None) -> float:
        """Return the bytes for a document.

        Args:
            tokens: of the document.
            budget: bytes of activations that a step may keep; None for any number.
            steps: tokens that a step reads in its graph; None for all.
        """
        in_graph = tokens if steps is None else steps
        kept = self.activations * in_graph
        if budget is not None:
            kept = min(kept, budget + self.traces * in_graph)
        return self.peak.at(tokens) - self.activations * tokens + kept


@torch.no_grad()
def state_growth(model: CausalLM, lengths: Sequence[int] = MEASURED_TOKENS) -> Growth:
    """Measure the state of a document that was read under the base weights."""
    growth = Growth.of(lengths, [model(_tokens(model, T)).state.nbytes for T in lengths])
    if model.views_prefixes:
        return growth
    snapshots = growth.fixed / SNAPSHOT_TOKENS
    return Growth(fixed=growth.fixed, per_token=growth.per_token + snapshots)


def adaptation_peak(
    model: CausalLM, config: AdaptConfig, lengths: Sequence[int] = MEASURED_TOKENS
) -> AdaptationPeak:
    """Measure the first step of an adaptation to a whole document, and its evaluations.

    Args:
        model: on any device; on the meta device only its shapes are computed.
        config: says which weights adapt; on evidence, the document stands for it.
        lengths: of the documents that are measured, in tokens.
    """
    config = config.model_copy(update={"rollouts": FEW_ROLLOUTS})
    peak = Growth.of(lengths, [_measure(model, config, T) for T in lengths])
    fast = _fast_weights(model, config)
    frozen = model.freeze(_tokens(model, PROBE_TOKENS), fast)
    return AdaptationPeak(
        peak=peak,
        activations=activation_bytes(model, frozen, fast),
        traces=_trace_bytes(model, frozen, fast),
    )


def _measure(model: CausalLM, config: AdaptConfig, tokens: int) -> int:
    with LiveBytes(model.parameters()) as live:
        fast = _fast_weights(model, config)
        rows = Rows(model, _tokens(model, tokens), fast, positions=config.rollouts.positions)
        run = run_pieces(prepare(rows, fast, config))
        assert isinstance(run, AdaptationRun), "a document of this length can be adapted to"
        [outcome] = AdaptStep.run_batch([AdaptStep(run, 1)])
        if isinstance(outcome, Exception):
            raise outcome
        assert isinstance(outcome, StepDone | StepRejected), "nothing stops the first step"
        run_pieces(choose_weights(run, [outcome.report], None))
    peak: int = live.peak
    return peak


@torch.no_grad()
def _trace_bytes(model: CausalLM, frozen: Frozen, fast: FastWeights) -> float:
    """Measure the traces of the layers above ``frozen``, a token."""
    traces = model.trunk(frozen, fast).traces[frozen.first_layer :]
    sizes = {key_of(t): t.untyped_storage().nbytes() for t in tensors_of(traces)}
    return sum(sizes.values()) / frozen.input_ids.numel()


def _fast_weights(model: CausalLM, config: AdaptConfig) -> FastWeights:
    own = config.fast_weights
    return model.new_fast_weights(own.targets, own.rank, config.seed)


def _tokens(model: CausalLM, count: int) -> Tensor:
    """Make a document of ``count`` tokens, each the next one in the vocabulary: [1, count]."""
    ids = torch.arange(count, device=model.device) % model.embedding.num_embeddings
    return ids[None]
