"""Reading tokens in segments, one after the other, each a piece of work of its own.

A segment starts from the state that the tokens before it left, in the graph, so the gradient is
that of the whole reading. Where the activations of all segments exceed the model's budget, a
segment is forgotten and computed again for its gradient (activation checkpointing); what is kept of
it then are its output and its traces, from which branches start.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from refine_server.kernels.delta_rule import CHUNK
from refine_server.ttt.fast_weights import BASE, FastWeights
from refine_server.ttt.models.base import CausalLM
from refine_server.ttt.models.device import synchronize
from refine_server.ttt.models.layers.functional import embedding
from refine_server.ttt.models.state import LayerState, State, Trace
from refine_server.ttt.models.tape import Graph, tensors_of
from refine_server.ttt.models.trunk import Frozen, Trunk
from refine_server.ttt.pieces import PieceKind, Pieces

PROBE_TOKENS = 2 * CHUNK
"""Tokens that are read to measure what a token's activations take."""

HEAD = 0
"""The number of layers of a piece that computes tokens' statistics by the LM head."""

OnRead = Callable[[int], None]
"""Called after each piece with the tokens of a row that it has read times its layers."""

Traces = tuple[Trace, ...]
"""A layer's traces of consecutive segments."""


@torch.no_grad()
def freeze_in_pieces(
    model: CausalLM,
    input_ids: Tensor,
    fast: FastWeights,
    state: State | None = None,
    on_read: OnRead | None = None,
) -> Pieces[Frozen]:
    """Do what ``CausalLM.freeze`` does, in pieces; behind a state no traces are kept."""
    frozen = Frozen(input_ids, None, (), 0)
    first = model.num_layers if fast.is_base else fast.first_layer
    if first is None:
        return frozen
    below = _Segments(model, frozen, BASE, state, range(first), is_top=False)
    hidden, traces = yield from below.read(Graph(), on_read)
    return Frozen(input_ids, hidden, traces, first)


def trunk_in_pieces(
    model: CausalLM,
    frozen: Frozen,
    fast: FastWeights,
    state: State | None,
    graph: Graph,
    on_read: OnRead | None = None,
) -> Pieces[Trunk]:
    """Do what ``CausalLM.trunk`` does, in parts of a graph; behind a state no traces are kept."""
    layers = range(frozen.first_layer, model.num_layers)
    above = _Segments(model, frozen, fast, state, layers, is_top=True)
    hidden, traces = yield from above.read(graph, on_read)
    return Trunk(hidden, (*frozen.traces, *traces))


def token_stats_in_pieces(
    model: CausalLM,
    hidden: Tensor,
    targets: Tensor,
    fast: FastWeights,
    graph: Graph,
    temperature: float = 1.0,
    first: int = 0,
) -> Pieces[tuple[Tensor, Tensor]]:
    """Do what ``CausalLM.token_stats`` does for targets [N, T], in pieces.

    Args:
        model: computes them by its LM head.
        hidden: [N, H, D], what ``cut`` or ``cat`` returned; target t is predicted by hidden state
            ``first`` + t.
        targets: [N, T].
        fast: the requests' fast weights.
        graph: its parts end with the results.
        temperature: divides the logits.
        first: how many hidden states predict none of the targets.
    """
    N, T = targets.shape
    kind: PieceKind = "step" if torch.is_grad_enabled() and hidden.requires_grad else "read"
    parts: list[tuple[Tensor, Tensor]] = []
    start = 0
    while start < T:
        if parts:
            yield
        began = time.monotonic()
        own = slice(start, start + model.pace.tokens_of_row(kind, HEAD, N))
        before = graph.narrow(hidden, 1, first + start, targets[:, own].shape[1])  # [N, n, D]
        make = partial(model.token_stats, before, targets[:, own], fast, temperature)
        parts.append(graph.cut(make))
        start += parts[-1][0].shape[1]
        synchronize(model.device)
        model.pace.observe(kind, HEAD, parts[-1][0].numel(), time.monotonic() - began)
    log_prob, entropy = (torch.cat(own, dim=1) for own in zip(*parts, strict=True))
    return log_prob, entropy


@dataclass(frozen=True, slots=True)
class _Segments:
    """Some consecutive layers over the tokens of ``frozen`` [B, T], segment by segment."""

    model: CausalLM
    frozen: Frozen
    fast: FastWeights
    state: State | None
    layers: range
    is_top: bool
    """Whether the final norm follows."""

    def read(self, graph: Graph, on_read: OnRead | None) -> Pieces[tuple[Tensor, Traces]]:
        """Read all tokens: hidden states [B, T, D], and the trace of each layer.

        There is one segment for families whose traces cannot be joined, unless nothing branches
        off, as behind a state.
        """
        rows, T = self.frozen.input_ids.shape
        kind: PieceKind = "step" if self._is_differentiable else "read"
        longest, recompute = self._within_budget()
        one_piece = self.state is None and not self.model.joins_segments
        pace = self.model.pace
        before: Sequence[Traces] = [()] * len(self.layers)
        outputs: list[Tensor] = []
        start = 0
        while start < T:
            if outputs:
                yield
            began = time.monotonic()
            paced = pace.tokens_of_row(kind, len(self.layers), rows)
            end = T if one_piece else min(start + min(paced, longest), T)
            make = partial(self._segment, start, end, before)
            observe = partial(pace.observe, kind, len(self.layers), rows * (end - start))
            output, own = graph.cut(make, recompute=recompute, on_backward=observe)
            outputs.append(output)
            before = [(*layer, trace) for layer, trace in zip(before, own, strict=True)]
            if on_read is not None:
                on_read(len(self.layers) * (end - start))
            if kind == "read":
                synchronize(self.model.device)
                observe(time.monotonic() - began)
            start = end
        if len(outputs) == 1:
            return output, tuple(own)
        yield
        return graph.cat(outputs, dim=1), self._joined(before, graph)

    def _segment(
        self, start: int, end: int, before: Sequence[Traces]
    ) -> tuple[Tensor, list[Trace]]:
        """Read tokens ``start`` … ``end`` - 1 after the segments ``before`` of every layer.

        A layer's state is made here, not outside: joined keys and values live only while it runs.
        """
        model, fast, layers = self.model, self.fast, self.layers
        ids = self.frozen.input_ids[:, start:end]
        if self.frozen.hidden is None:
            x = embedding(ids, model.embedding, fast, model.embed_name)  # [B, n, D]
        else:
            x = self.frozen.hidden[:, start:end]
        position = torch.full(ids.shape[:1], start, device=ids.device)  # [B]
        if self.state is not None:
            position = position + self.state.position
        states = [self._state(layer, own) for layer, own in zip(layers, before, strict=True)]
        with _joined_again([] if self.state is not None else states, before):
            x, traces = model.run_layers(x, states, position, fast, layers.start, layers.stop)
        if self.state is None:
            traces = [trace.own() for trace in traces]
        return (model.final_norm(x, fast) if self.is_top else x), traces

    def _state(self, layer: int, before: Traces) -> LayerState | None:
        """Return the state that a layer continues from."""
        if self.state is None:
            return before[0].state_after(before) if before else None
        return before[-1].final() if before else self.state.layers[layer]

    def _joined(self, before: Sequence[Traces], graph: Graph) -> Traces:
        """Return each layer's trace of all tokens; behind a state none."""
        if self.state is not None:
            return ()
        if self._is_differentiable:
            return tuple(own[0].in_graph(own, graph.cat) for own in before)
        return tuple(own[0].join(own) for own in before)

    @property
    def _is_differentiable(self) -> bool:
        return torch.is_grad_enabled() and not self.fast.is_base

    def _within_budget(self) -> tuple[int, bool]:
        """Return the longest segment, in tokens of a row, and whether it is computed again."""
        model, (R, T) = self.model, self.frozen.input_ids.shape
        budget = model.activation_budget
        if budget is None or not self._is_differentiable or T <= PROBE_TOKENS:
            return T, False
        own = tuple((name, *tensor.shape[1:]) for name, tensor in self.fast.tensors.items())
        key = (self.layers.start, self.frozen.hidden is None, own)
        if key not in model.activation_bytes:
            model.activation_bytes[key] = activation_bytes(model, self.frozen, self.fast)
        tokens = int(budget / (R * model.activation_bytes[key]))
        return (T, False) if tokens >= T else (max(tokens // CHUNK, 1) * CHUNK, True)


@contextmanager
def _joined_again(states: Sequence[LayerState | None], before: Sequence[Traces]) -> Iterator[None]:
    """Let graphs keep no copy of states that were joined of earlier segments.

    Every segment reads the keys and values of all segments before it as one tensor. Copies of all
    of these would take memory by the square of the tokens, so the backward pass joins them again.
    """
    places = {
        key_of(tensor): (layer, number)
        for layer, state in enumerate(states)
        for number, tensor in enumerate(tensors_of(state))
        if tensor.numel() and tensor.requires_grad
    }

    def pack(tensor: Tensor) -> Any:
        place = places.get(key_of(tensor)) if tensor.numel() else None
        if place is None:
            return tensor
        return place, tensor.shape, tensor.stride(), tensor.storage_offset()

    def unpack(kept: Any) -> Tensor:
        if isinstance(kept, Tensor):
            return kept
        (layer, number), *view = kept
        with torch.no_grad():
            own = before[layer]
            joined = tensors_of(own[0].state_after(own))[number]
        again: Tensor = joined.as_strided(*view)
        return again

    if not places:
        yield
        return
    with saved_tensors_hooks(pack, unpack):
        yield


def activation_bytes(model: CausalLM, frozen: Frozen, fast: FastWeights) -> float:
    """Measure what the graph of the layers above ``frozen`` keeps for one token of one row more.

    A few tokens are read for it, and half of them. What does not grow with them is not counted: the
    base weights, the requests' own, and the state that a segment begins with.
    """
    fast = FastWeights({name: t.detach() for name, t in fast.select(0).tensors.items()})
    fast.requires_grad_()
    more = min(frozen.input_ids.shape[1], PROBE_TOKENS)
    less = more // 2
    kept = [_kept_bytes(model, frozen, fast, tokens) for tokens in (less, more)]
    return (kept[1] - kept[0]) / (more - less)


def _kept_bytes(model: CausalLM, frozen: Frozen, fast: FastWeights, tokens: int) -> int:
    """Return the bytes that the graph of the first tokens of one row keeps beside the weights."""
    few = Frozen(
        frozen.input_ids[:1, :tokens],
        None if frozen.hidden is None else frozen.hidden[:1, :tokens].clone(),
        (),
        frozen.first_layer,
    )
    own = {key_of(t) for t in (*model.parameters(), *fast.parameters())}
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        if key_of(tensor) not in own:
            kept[key_of(tensor)] = tensor.untyped_storage().nbytes()
        return tensor.detach()  # a graph that holds its own outputs would never be freed

    layers = range(frozen.first_layer, model.num_layers)
    segments = _Segments(model, few, fast, None, layers, is_top=False)
    with saved_tensors_hooks(note, lambda tensor: tensor):
        graph = segments._segment(0, tokens, [()] * len(layers))  # alive: no storage is reused
    del graph
    return sum(kept.values())


def key_of(tensor: Tensor) -> int:
    """Return what tells storages apart that are alive, on the meta device as well."""
    key: int = tensor.untyped_storage()._cdata
    return key
