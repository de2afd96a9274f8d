"""Activation checkpointing: a reading in segments, each of them computed again for its gradient.

A segment starts from the state that the tokens before it left, in the graph, so the gradient is
that of the whole reading. What is kept of a segment is its output and its traces, from which
branches start; everything between is made again, one segment at a time, in the backward pass.
"""

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from refine_server.kernels.delta_rule import CHUNK
from refine_server.ttt.fast_weights import FastWeights
from refine_server.ttt.models.state import DeltaState, DeltaTrace, KVTrace, LayerState, Trace

if TYPE_CHECKING:
    from refine_server.ttt.models.base import CausalLM

PROBE_TOKENS = 2 * CHUNK
"""Tokens that are read to find out what a token's activations take."""

Before = DeltaState | tuple[KVTrace, ...] | None
"""What a layer's next segment starts from: keys and values are joined only while it runs."""


def run_checkpointed(
    model: "CausalLM",
    x: Tensor,
    states: Sequence[LayerState | None],
    position: Tensor,
    fast: FastWeights,
    first: int,
) -> tuple[Tensor, list[Trace]]:
    """Layers ``first`` and up over the whole of x [R, T, D], within the model's activation budget.

    One segment, that is no recomputation, where the budget allows it, where no gradient is wanted,
    where x continues from ``states`` (of those layers, at ``position`` [R]), and for families whose
    traces cannot be joined.
    """
    length = _segment_tokens(model, x, fast, first)
    if length >= x.shape[1] or any(state is not None for state in states):
        return model.run_layers(x, states, position, fast, first, model.num_layers)
    before: list[Before] = [None] * (model.num_layers - first)
    parts: list[Tensor] = []
    traces: list[list[Trace]] = []  # of each segment's layers
    for start in range(0, x.shape[1], length):
        run = partial(_segment, model, fast, first, start)
        piece = x[:, start : start + length]
        part, own = checkpoint(run, piece, before, use_reentrant=False, preserve_rng_state=False)
        parts.append(part)
        traces.append(own)
        before = [_extend(b, trace) for b, trace in zip(before, own, strict=True)]
    return torch.cat(parts, dim=1), [_join(layer) for layer in zip(*traces, strict=True)]


def activation_bytes(model: "CausalLM", x: Tensor, fast: FastWeights, first: int) -> float:
    """What the graph of layers ``first`` and up keeps for one token of one row of x [R, T, D].

    Measured by reading a few tokens; the base weights and the requests' own are not counted.
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
    before: list[Before] = [None] * (model.num_layers - first)
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        graph = _segment(model, fast, first, 0, few, before)  # alive, so that no storage is reused
    del graph
    return sum(kept.values()) / few.shape[1]


def _segment_tokens(model: "CausalLM", x: Tensor, fast: FastWeights, first: int) -> int:
    """The longest segment within the budget, in whole kernel chunks; all of x if that fits."""
    R, T, _ = x.shape
    budget = model.activation_budget
    wanted = torch.is_grad_enabled() and not fast.is_base and model.joins_segments
    if budget is None or not wanted or T <= PROBE_TOKENS:
        return T
    tokens = int(budget / (R * activation_bytes(model, x, fast, first)))
    return T if tokens >= T else max(tokens // CHUNK, 1) * CHUNK


def _segment(
    model: "CausalLM",
    fast: FastWeights,
    first: int,
    start: int,
    x: Tensor,
    before: Sequence[Before],
) -> tuple[Tensor, list[Trace]]:
    """Tokens ``start`` and on, x [R, S, D], after the segments that left ``before``."""
    states: list[LayerState | None] = [
        _join(layer).final() if isinstance(layer, tuple) else layer for layer in before
    ]
    position = torch.full(x.shape[:1], start, device=x.device)
    return model.run_layers(x, states, position, fast, first, model.num_layers)


def _extend(before: Before, trace: Trace) -> Before:
    if isinstance(trace, KVTrace):
        return (*(before if isinstance(before, tuple) else ()), trace)
    if isinstance(trace, DeltaTrace):
        return trace.final()
    raise TypeError(f"a layer that leaves a {type(trace).__name__} cannot be read in segments")


def _join(segments: Sequence[Trace]) -> Trace:
    """The traces of a layer's segments as that of one forward over all their tokens."""
    kv = [trace for trace in segments if isinstance(trace, KVTrace)]
    if kv:
        k, v = (torch.cat(x, dim=2) for x in ([t.k for t in kv], [t.v for t in kv]))
        return KVTrace(k, v, None, kv[0].window)
    deltas = [trace for trace in segments if isinstance(trace, DeltaTrace)]
    decays = [trace.g for trace in deltas if trace.g is not None]
    return DeltaTrace(
        k=torch.cat([t.k for t in deltas], dim=2),
        v=torch.cat([t.v for t in deltas], dim=2),
        beta=torch.cat([t.beta for t in deltas], dim=2),
        memory=torch.cat([*(t.memory[:, :, :-1] for t in deltas), deltas[-1].memory[:, :, -1:]], 2),
        conv_inputs=_join_conv_inputs(deltas),
        g=torch.cat(decays, dim=2) if decays else None,
    )


def _join_conv_inputs(segments: Sequence[DeltaTrace]) -> Tensor | None:
    """Those of the first segment, and of the others what they did not begin with: [B, W-1+T, C]."""
    inputs = [t.conv_inputs for t in segments if t.conv_inputs is not None]
    if not inputs:
        return None
    width = inputs[0].shape[1] - segments[0].k.shape[2]  # W - 1
    return torch.cat([inputs[0], *(x[:, width:] for x in inputs[1:])], dim=1)
