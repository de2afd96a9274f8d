"""What every model family shares: the stateful forward, the trunk and its branches, the LM head."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from refine_server.kernels import dispatch
from refine_server.ttt.fast_weights import BASE, FastWeights
from refine_server.ttt.models.checkpointing import run_checkpointed
from refine_server.ttt.models.layers.functional import embedding, logits, rms_norm
from refine_server.ttt.models.state import LayerState, State, Trace, cat_padded, stack_traces


class ModelError(ValueError):
    """A checkpoint, a configuration or a name that cannot be served; the message says why."""


@dataclass(frozen=True)
class Output:
    """What a forward gives. ``logits`` is computed when it is asked for, never before.

    hidden: [B, T, D], after the final norm, as fed to the LM head. state: after the last token.
    """

    hidden: Tensor
    state: State
    head: Tensor = field(repr=False)

    @property
    def logits(self) -> Tensor:
        """[B, T, V]."""
        return logits(self.hidden, self.head)


@dataclass(frozen=True)
class Frozen:
    """What no fast weight of the request can reach: computed once a document, used by every step.

    hidden: [R, T, D], the input of layer ``first_layer``, or None when the embedding itself adapts.
    """

    input_ids: Tensor
    hidden: Tensor | None
    traces: tuple[Trace, ...]
    first_layer: int

    @staticmethod
    def stack(readings: Sequence["Frozen"]) -> "Frozen":
        """Readings of several requests side by side, padded at the end: no token sees what follows.

        All must have the same ``first_layer``.
        """
        if len(readings) == 1:
            return readings[0]
        ids = cat_padded([own.input_ids for own in readings], 1)
        hidden = [own.hidden for own in readings if own.hidden is not None]
        traces = zip(*(own.traces for own in readings), strict=True)
        return Frozen(
            ids,
            cat_padded(hidden, 1) if hidden else None,
            tuple(stack_traces(layer) for layer in traces),
            readings[0].first_layer,
        )


@dataclass(frozen=True)
class Trunk:
    """One differentiable reading of a document (design: trunk and branch).

    hidden: [R, T, D], after the final norm. Branches start from ``state_at``.
    """

    hidden: Tensor
    traces: tuple[Trace, ...]

    @property
    def state(self) -> State:
        """The state after the last token."""
        R, T, _ = self.hidden.shape
        position = torch.full((R,), T, device=self.hidden.device)
        return State(tuple(trace.final() for trace in self.traces), position)

    def state_at(self, positions: Tensor) -> State:
        """In-graph states before the tokens at positions [R, G]: a batch of R G rows."""
        return State(tuple(trace.at(positions) for trace in self.traces), positions.flatten())


class CausalLM(nn.Module, ABC):
    """A causal language model with explicit state and explicit fast weights.

    The module's own parameters are the base weights; they are frozen on construction and nothing
    here ever writes to them.
    """

    family: str
    name: str
    embed_name: str
    norm_eps: float
    low_rank_modules: tuple[str, ...]
    stacks_states: ClassVar[bool] = True
    """Whether states of different lengths go into one batch (``State.stack``)."""
    joins_segments: ClassVar[bool] = True
    """Whether traces of consecutive segments join into one (``checkpointing``)."""
    model: Any
    lm_head: nn.Linear
    config: Any

    def __init__(self) -> None:
        super().__init__()
        self.name = "model"
        self.tokenizer: Any = None
        self.piece_tokens: int | None = None
        self.activation_budget: int | None = None
        """Bytes that a trunk's graph may keep; a longer one is recomputed in its backward pass."""
        self.threads = 1
        """Threads that work for different requests at once, each on ops of a single thread."""

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        """Cast or move the weights, and lay them out again."""
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self.lay_out()
        return self

    @property
    def cuts_states(self) -> bool:
        """Whether a state can give up its last tokens (``State.without_last``)."""
        return False

    # -- what a family defines ------------------------------------------------------------------

    @abstractmethod
    def block(
        self, index: int, x: Tensor, state: LayerState | None, fast: FastWeights, context: Any
    ) -> tuple[Tensor, Trace]:
        """Layer ``index`` over x [B, T, D], from a state (None: from the start)."""

    @abstractmethod
    def context(self, x: Tensor, position: Tensor) -> Any:
        """What all layers of one forward share, e.g. rotary tables; position: [B]."""

    @abstractmethod
    def new_fast_weights(self, targets: str, rank: int, seed: int) -> FastWeights:
        """One request's fresh copy, equal to the base model in effect."""

    def lay_out(self) -> None:
        """Lay the weights as the forward reads them best; their values stay as they are."""

    # -- forward --------------------------------------------------------------------------------

    def forward(
        self,
        input_ids: Tensor,
        state: State | None = None,
        fast_weights: FastWeights | None = None,
    ) -> Output:
        """Read input_ids [B, T] from a state: hidden states, lazy logits, the state after them."""
        if input_ids.ndim != 2 or input_ids.shape[1] == 0:
            raise ValueError("input_ids must be [B, T] with T >= 1")
        fast = BASE if fast_weights is None else fast_weights
        x = embedding(input_ids, self.embedding, fast, self.embed_name)  # [B, T, D]
        position, layers = self._begin(input_ids, state, 0, self.num_layers)
        hidden, after = self.read_on(x, layers, position, fast)
        return Output(hidden, State(after, position + input_ids.shape[1]), self.head(fast))

    def read_on(
        self,
        x: Tensor,
        states: Sequence[LayerState | None],
        position: Tensor,
        fast: FastWeights,
    ) -> tuple[Tensor, tuple[LayerState, ...]]:
        """Hidden states of x [B, T, D] after all layers and the final norm, and the layers' states.

        Every layer starts from its own of ``states``. No trace is kept, so a family can have a
        shorter way for what it often reads.
        """
        x, traces = self.run_layers(x, states, position, fast, 0, self.num_layers)
        return self._final_norm(x, fast), tuple(trace.final() for trace in traces)

    @torch.no_grad()
    def read(self, input_ids: Tensor, fast: FastWeights) -> tuple[Tensor, State]:
        """Read input_ids [B, T] without a graph: the last hidden state [B, D] and the state.

        In pieces of ``piece_tokens`` if the model has that, so that no more than a piece and a
        state is in memory however long the text.
        """
        output, state = None, None
        for piece in input_ids.split(self.piece_tokens or input_ids.shape[1], dim=1):
            output = self(piece, state, fast)
            state = output.state
        if output is None:
            raise ValueError("input_ids must be [B, T] with T >= 1")
        return output.hidden[:, -1], output.state

    def freeze(self, input_ids: Tensor, fast: FastWeights, state: State | None = None) -> Frozen:
        """The part of the trunk over input_ids [R, T] that lies below all of ``fast``."""
        first = self.num_layers if fast.is_base else fast.first_layer
        if first is None:
            return Frozen(input_ids, None, (), 0)
        position, states = self._begin(input_ids, state, 0, first)
        with torch.no_grad():
            x = embedding(input_ids, self.embedding, BASE, self.embed_name)
            x, traces = self.run_layers(x, states, position, BASE, 0, first)
        return Frozen(input_ids, x, tuple(traces), first)

    def trunk(self, frozen: Frozen, fast: FastWeights, state: State | None = None) -> Trunk:
        """Finish the reading that ``frozen`` began, under ``fast``, differentiably.

        ``state`` is what both parts continue from, None the beginning.
        """
        x, first = frozen.hidden, frozen.first_layer
        if x is None:
            x = embedding(frozen.input_ids, self.embedding, fast, self.embed_name)
        position, states = self._begin(frozen.input_ids, state, first, self.num_layers)
        x, traces = run_checkpointed(self, x, states, position, fast, first)
        return Trunk(self._final_norm(x, fast), (*frozen.traces, *traces))

    def _begin(
        self, input_ids: Tensor, state: State | None, first: int, last: int
    ) -> tuple[Tensor, Sequence[LayerState | None]]:
        """Positions [B] and the states of layers ``first`` … ``last`` - 1 to continue from."""
        if state is None:
            return input_ids.new_zeros(input_ids.shape[0]), [None] * (last - first)
        return state.position, state.layers[first:last]

    def run_layers(
        self,
        x: Tensor,
        states: Sequence[LayerState | None],
        position: Tensor,
        fast: FastWeights,
        first: int,
        last: int,
    ) -> tuple[Tensor, list[Trace]]:
        """Layers ``first`` … ``last`` - 1 over x [B, T, D], each from its own of ``states``."""
        traces = []
        context = self.context(x, position)
        for index, state in zip(range(first, last), states, strict=True):
            x, trace = self.block(index, x, state, fast, context)
            traces.append(trace)
        return x, traces

    def _final_norm(self, x: Tensor, fast: FastWeights) -> Tensor:
        return rms_norm(x, self.model.norm.weight, self.norm_eps, fast, "model.norm")

    # -- head -----------------------------------------------------------------------------------

    def head(self, fast: FastWeights) -> Tensor:
        """The LM head's weight: [V, D], or [R, V, D] when the requests own it."""
        own = fast.get(self.embed_name + ".weight" if self.tied else "lm_head.weight")
        return self.lm_head.weight if own is None else own

    def head_logits(self, hidden: Tensor, fast: FastWeights) -> Tensor:
        """Logits [N, V] of a few hidden states [N, D], the requests' rows side by side."""
        return logits(hidden, self.head(fast))

    def token_stats(
        self, hidden: Tensor, targets: Tensor, fast: FastWeights, temperature: float = 1.0
    ) -> tuple[Tensor, Tensor]:
        """Log-probability of targets [N, T] and entropy after hidden [N, T, D]: both [N, T]."""
        head = self.head(fast)
        heads = [head] if head.ndim == 2 else list(head)
        rows = hidden.shape[0] // len(heads)
        results = [
            dispatch.token_stats(h.flatten(0, 1), w.to(h.dtype), t.flatten(), temperature)
            for h, w, t in zip(hidden.split(rows), heads, targets.split(rows), strict=True)
        ]
        log_prob = torch.cat([stats.log_prob for stats in results])
        entropy = torch.cat([stats.entropy for stats in results])
        return log_prob.view(targets.shape), entropy.view(targets.shape)

    # -- fast weights ---------------------------------------------------------------------------

    def low_rank_weights(self, modules: Sequence[str], rank: int, seed: int) -> dict[str, Tensor]:
        """Low-rank deltas on the named projections: A random, B zero, so that they start at 0."""
        generator = torch.Generator().manual_seed(seed)
        dtype = torch.promote_types(self.dtype, torch.float32)
        tensors = {}
        for name in modules:
            out, width = self.get_submodule(name).weight.shape  # type: ignore[misc]
            size = min(rank, int(width), int(out))
            a = torch.randn(1, width, size, generator=generator) * width**-0.5
            tensors[f"{name}.lora_a"] = a.to(self.device, dtype)
            tensors[f"{name}.lora_b"] = torch.zeros(1, size, out, device=self.device, dtype=dtype)
        return tensors

    def empty_memories(
        self, modules: Sequence[str], shape: tuple[int, int, int]
    ) -> dict[str, Tensor]:
        """Learnable initial memories [1, H, K, V] of delta-rule layers: zeros, as without them."""
        dtype = torch.promote_types(self.dtype, torch.float32)
        return {
            f"{name}.state": torch.zeros(1, *shape, dtype=dtype, device=self.device)
            for name in modules
        }

    def full_copy(self) -> FastWeights:
        """A request's copy of every parameter (``targets = all``, as in the paper)."""
        dtype = torch.promote_types(self.dtype, torch.float32)
        return FastWeights(
            {name: p.detach().to(dtype, copy=True)[None] for name, p in self.named_parameters()}
        )

    # -- facts ----------------------------------------------------------------------------------

    @property
    def embedding(self) -> nn.Embedding:
        """The token embedding."""
        module = self.get_submodule(self.embed_name)
        assert isinstance(module, nn.Embedding)
        return module

    @property
    def tied(self) -> bool:
        """Whether the LM head is the embedding."""
        return self.lm_head.weight is self.embedding.weight

    @property
    def num_layers(self) -> int:
        """Number of layers."""
        return len(self.model.layers)

    @property
    def dtype(self) -> torch.dtype:
        """The base weights' dtype."""
        return self.lm_head.weight.dtype

    @property
    def device(self) -> torch.device:
        """Where the base weights are."""
        return self.lm_head.weight.device

    @property
    def stop_ids(self) -> frozenset[int]:
        """Tokens that end an answer."""
        found: set[int] = set()
        for source in (self.config, getattr(self, "generation_config", None), self.tokenizer):
            ids = getattr(source, "eos_token_id", None)
            found.update(ids if isinstance(ids, list | tuple) else [] if ids is None else [ids])
        return frozenset(found)

    def fingerprint(self) -> str:
        """SHA-256 over the base weights: names, shapes, types and every bit of their values."""
        digest = hashlib.sha256()
        for name, weight in sorted(self.named_parameters()):
            digest.update(f"{name} {tuple(weight.shape)} {weight.dtype}\n".encode())
            flat = weight.detach().contiguous().view(-1).view(torch.uint8)
            digest.update(flat.cpu().numpy().data)
        return digest.hexdigest()

    @property
    def num_parameters(self) -> int:
        """How many base weights there are, shared ones counted once."""
        return sum(p.numel() for p in self.parameters())
