"""Activation checkpointing: a document is read in segments, each recomputed for its gradient.

A segment starts from the state that the tokens before it left, in the graph, so the gradient is
that of the whole reading. What is kept of a segment is its output and its traces, from which
branches start; everything between is computed again, one segment at a time, in the backward pass.
"""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from refine_server.kernels.delta_rule import CHUNK
from refine_server.ttt.fast_weights import FastWeights
from refine_server.ttt.models.state import LayerState, Trace

PROBE_TOKENS = 2 * CHUNK
"""Tokens that are read to measure what a token's activations take."""

Segments = tuple[Trace, ...]
"""A layer's traces of consecutive segments, the first of which began the sequence."""


class LayerStack(Protocol):
    """What is needed of a model: to run its layers, and to know how much their graph may keep."""

    activation_budget: int | None

    @property
    def joins_segments(self) -> bool:
        """Whether traces of consecutive segments join into one."""

    @property
    def num_layers(self) -> int:
        """Number of layers."""

    def parameters(self) -> Iterator[nn.Parameter]:
        """Iterate over the base weights."""

    def run_layers(
        self,
        x: Tensor,
        states: Sequence[LayerState | None],
        position: Tensor,
        fast: FastWeights,
        first: int,
        last: int,
    ) -> tuple[Tensor, list[Trace]]:
        """Run layers ``first`` … ``last`` - 1 over x [B, T, D]."""


def run_checkpointed(
    model: LayerStack,
    x: Tensor,
    states: Sequence[LayerState | None],
    position: Tensor,
    fast: FastWeights,
    first: int,
) -> tuple[Tensor, list[Trace]]:
    """Run layers ``first`` and up over all of x [R, T, D], within the model's activation budget.

    There is one segment, which is not recomputed, where the budget allows it, where no gradient is
    wanted, where x continues from ``states`` (of those layers, at ``position`` [R]), and for
    families whose traces cannot be joined.
    """
    length = _segment_tokens(model, x, fast, first)
    if length >= x.shape[1] or any(state is not None for state in states):
        return model.run_layers(x, states, position, fast, first, model.num_layers)
    before: list[Segments] = [()] * (model.num_layers - first)
    outputs: list[Tensor] = []
    for start in range(0, x.shape[1], length):
        run = partial(_segment, model, fast, first, start)
        piece = x[:, start : start + length]
        output, own = checkpoint(run, piece, before, use_reentrant=False, preserve_rng_state=False)
        outputs.append(output)
        before = [(*layer, trace) for layer, trace in zip(before, own, strict=True)]
    return torch.cat(outputs, dim=1), [layer[0].join(layer) for layer in before]


def activation_bytes(model: LayerStack, x: Tensor, fast: FastWeights, first: int) -> float:
    """Measure what the graph of layers ``first`` and up keeps for one token of one row.

    A few tokens of x [R, T, D] are read for it. The base weights and the requests' own are not
    counted.
    """
    fast = FastWeights({name: t.detach() for name, t in fast.select(0).tensors.items()})
    fast.requires_grad_()
    own = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *fast.parameters())}
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    few = x[:1, :PROBE_TOKENS].detach().clone().requires_grad_(x.requires_grad)
    before: list[Segments] = [()] * (model.num_layers - first)
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        graph = _segment(model, fast, first, 0, few, before)  # alive, so that no storage is reused
    del graph
    return sum(kept.values()) / few.shape[1]


def _segment_tokens(model: LayerStack, x: Tensor, fast: FastWeights, first: int) -> int:
    """Return the longest segment within the budget, in whole kernel chunks; all of x if it fits."""
    R, T, _ = x.shape
    budget = model.activation_budget
    wanted = torch.is_grad_enabled() and not fast.is_base and model.joins_segments
    if budget is None or not wanted or T <= PROBE_TOKENS:
        return T
    tokens = int(budget / (R * activation_bytes(model, x, fast, first)))
    return T if tokens >= T else max(tokens // CHUNK, 1) * CHUNK


def _segment(
    model: LayerStack,
    fast: FastWeights,
    first: int,
    start: int,
    x: Tensor,
    before: Sequence[Segments],
) -> tuple[Tensor, list[Trace]]:
    """Read tokens ``start`` and on, x [R, S, D], after the segments ``before`` of every layer.

    A layer's state is made here, not outside: joined keys and values live only while it runs.
    """
    states = [layer[0].state_after(layer) if layer else None for layer in before]
    position = torch.full(x.shape[:1], start, device=x.device)
    return model.run_layers(x, states, position, fast, first, model.num_layers)
