"""What every model family shares: the stateful forward, the trunk and its branches, the LM head.

The forward reads tokens ids [B, T] from a state, under the requests' fast weights:

    x            = embedding(ids)                          # [B, T, D]
    context      = family.context(x, position)             # e.g. rotary tables
    x, trace     = family.block(i, x, state[i], ...)       # for every layer i
    hidden       = rms_norm(x)                             # [B, T, D]
    logits       = hidden W_head^T                         # [B, T, V], only when asked for
    state        = (trace.final() for every layer)

A step needs the same of a whole document, again and again: ``freeze`` computes the layers below all
fast weights once, ``trunk`` the others, and rollouts branch off from ``Trunk.state_at``.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Sequence
from functools import cached_property
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from refine_server.ttt.fast_weights import BASE, FastWeights
from refine_server.ttt.models import base_weights
from refine_server.ttt.models.layers.functional import embedding, logits, rms_norm, token_stats
from refine_server.ttt.models.layers.low_rank import new_low_rank_updates
from refine_server.ttt.models.output import Output
from refine_server.ttt.models.state import LayerState, State, Trace
from refine_server.ttt.models.trunk import Frozen, Trunk
from refine_server.ttt.pieces import Pace


class ModelError(ValueError):
    """A checkpoint, a configuration or a name that cannot be served; the message says why."""


Context = Any
"""What a family's ``context`` returns and its ``block`` takes; the family knows its type."""


class CausalLM(nn.Module, ABC):
    """A causal language model with explicit state and explicit fast weights.

    The module's own parameters are the base weights; they are frozen on construction and nothing
    here ever writes to them.
    """

    family: ClassVar[str]
    """The family's name, as ``refine-server models`` lists it."""
    embed_name: ClassVar[str]
    """The token embedding's name among the modules."""
    state_classes: frozenset[type[LayerState]]
    """Classes of the layers' states; what these can do is what the model's states can do."""
    model: Any
    """The modules below the LM head, with ``layers`` and a final ``norm``."""
    lm_head: nn.Linear
    norm_eps: float
    """Epsilon of the final norm."""
    attention_layers: tuple[int, ...] = ()
    """The layers with softmax attention to all earlier tokens, in ascending order."""
    context_length: int | None = None
    """Longest sequence, in tokens, whose positions the model was trained for; None: any length."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config
        self.generation_config: Any = None
        self.name = "model"
        self.tokenizer: Any = None
        self.prefill_chunk: int | None = None
        """Tokens of a document that are read at once (chunked prefill); None: all."""
        self.activation_budget: int | None = None
        """Bytes that a step's graph may keep; more is recomputed in the backward pass."""
        self.activation_bytes: dict[Hashable, float] = {}
        """What a token's activations were measured to take, by what is read and differentiated."""
        self.threads = 1
        """Threads that work for different requests at once, each on ops of a single thread."""

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Cast or move the weights, and pack them again."""
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self.pack_weights()
        return self

    @cached_property
    def pace(self) -> Pace:
        """How many tokens pieces of the model's work have."""
        return Pace(self.num_parameters, self.device.type)

    # -- what states can do ---------------------------------------------------------------------

    @property
    def stacks_states(self) -> bool:
        """Whether states of different lengths go into one batch (``State.stack``)."""
        return all(kind.stacks for kind in self.state_classes)

    @property
    def truncates_states(self) -> bool:
        """Whether a state can give up its last tokens (``State.truncate``)."""
        return all(kind.truncates for kind in self.state_classes)

    @property
    def joins_segments(self) -> bool:
        """Whether traces of consecutive segments join into one (``segments``)."""
        return all(kind.joins_segments for kind in self.state_classes)

    @property
    def views_prefixes(self) -> bool:
        """Whether a state holds the states before all its tokens (``LayerState.prefixes``)."""
        return all(kind.views_prefixes for kind in self.state_classes)

    # -- what a family defines ------------------------------------------------------------------

    @abstractmethod
    def block(
        self, index: int, x: Tensor, state: Any, fast: FastWeights, context: Context
    ) -> tuple[Tensor, Trace]:
        """Run layer ``index`` over x [B, T, D], from a state (None: from the start)."""

    @abstractmethod
    def context(self, x: Tensor, position: Tensor) -> Context:
        """Make what all layers of one forward share, e.g. rotary tables; position: [B]."""

    @abstractmethod
    def new_fast_weights(self, targets: str, rank: int, seed: int) -> FastWeights:
        """Make one request's fresh copy, equal to the base model in effect.

        Args:
            targets: what the request owns: "fast_weights" (the family's own choice), "low_rank"
                (LoRA on all projections), "queries" (LoRA on query projections, which no state
                depends on) or "all" (every parameter).
            rank: rank of the LoRA.
            seed: of its random half.
        """

    def pack_weights(self) -> None:
        """Lay the weights out as the forward reads them fastest; their values do not change.

        Called after loading and after every cast or move.
        """

    def limit_window(self, tokens: int) -> None:
        """Let attention see only the last ``tokens`` tokens; ModelError where there is none."""
        raise ModelError(f"window: the family {self.family} has no attention window to set")

    def _can_decode_fast(
        self, x: Tensor, states: Sequence[LayerState | None], fast: FastWeights
    ) -> bool:
        """Return whether ``_decode_fast`` covers this input; False for a family without it."""
        return False

    def _decode_fast(
        self, x: Tensor, states: Sequence[Any], position: Tensor, fast: FastWeights
    ) -> tuple[Tensor, tuple[LayerState, ...]]:
        """Compute what ``advance`` does in fewer operations, for what a decode step reads."""
        raise NotImplementedError

    # -- forward --------------------------------------------------------------------------------

    def forward(
        self,
        input_ids: Tensor,
        state: State | None = None,
        fast_weights: FastWeights | None = None,
    ) -> Output:
        """Read input_ids [B, T] from a state: hidden states, logits if asked for, and the state.

        Args:
            input_ids: [B, T], T >= 1.
            state: of B rows, where the tokens continue from; None: the start.
            fast_weights: of R requests, B a multiple of R; None: the base model.
        """
        if input_ids.ndim != 2 or input_ids.shape[1] == 0:
            raise ValueError("input_ids must be [B, T] with T >= 1")
        fast = BASE if fast_weights is None else fast_weights
        x = embedding(input_ids, self.embedding, fast, self.embed_name)  # [B, T, D]
        position, layers = self._begin(input_ids, state, 0, self.num_layers)
        hidden, after = self.advance(x, layers, position, fast)
        return Output(hidden, State(after, position + input_ids.shape[1]), self.head(fast))

    def advance(
        self,
        x: Tensor,
        states: Sequence[LayerState | None],
        position: Tensor,
        fast: FastWeights,
    ) -> tuple[Tensor, tuple[LayerState, ...]]:
        """Run all layers and the final norm over x [B, T, D], every layer from its own state.

        Returns the hidden states [B, T, D] and the layers' states after x. No trace is kept, so
        this is where a family takes its fast path.
        """
        if self._can_decode_fast(x, states, fast):
            return self._decode_fast(x, states, position, fast)
        after = []
        context = self.context(x, position)
        for index, state in enumerate(states):
            x, trace = self.block(index, x, state, fast, context)
            after.append(trace.final())
            del trace  # before the next layer makes its own
        return self.final_norm(x, fast), tuple(after)

    @torch.no_grad()
    def read(self, input_ids: Tensor, fast: FastWeights) -> tuple[Tensor, State]:
        """Read input_ids [B, T] without a graph: the last hidden state [B, D] and the state.

        A model with a ``prefill_chunk`` reads so many tokens at once, so that no more than a chunk
        and a state is in memory however long the text.
        """
        first, *others = input_ids.split(self.prefill_chunk or input_ids.shape[1], dim=1)
        output: Output = self(first, None, fast)
        for chunk in others:
            output = self(chunk, output.state, fast)
        return output.hidden[:, -1], output.state

    def freeze(self, input_ids: Tensor, fast: FastWeights, state: State | None = None) -> Frozen:
        """Compute the part of the trunk over input_ids [R, T] that lies below all of ``fast``."""
        first = self.num_layers if fast.is_base else fast.first_layer
        if first is None:
            return Frozen(input_ids, None, (), 0)
        position, states = self._begin(input_ids, state, 0, first)
        with torch.no_grad():
            x = embedding(input_ids, self.embedding, BASE, self.embed_name)
            x, traces = self.run_layers(x, states, position, BASE, 0, first)
        return Frozen(input_ids, x, tuple(traces), first)

    def trunk(self, frozen: Frozen, fast: FastWeights, state: State | None = None) -> Trunk:
        """Finish what ``frozen`` began from ``state``, under ``fast`` and in the graph."""
        x, first = frozen.hidden, frozen.first_layer
        if x is None:
            x = embedding(frozen.input_ids, self.embedding, fast, self.embed_name)
        position, states = self._begin(frozen.input_ids, state, first, self.num_layers)
        x, traces = self.run_layers(x, states, position, fast, first, self.num_layers)
        return Trunk(self.final_norm(x, fast), (*frozen.traces, *traces))

    def _begin(
        self, input_ids: Tensor, state: State | None, first: int, last: int
    ) -> tuple[Tensor, Sequence[LayerState | None]]:
        """Return positions [B] and states of layers ``first`` … ``last`` - 1 to continue from."""
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
        """Run layers ``first`` … ``last`` - 1 over x [B, T, D], each from its own of ``states``."""
        traces = []
        context = self.context(x, position)
        for index, state in zip(range(first, last), states, strict=True):
            x, trace = self.block(index, x, state, fast, context)
            traces.append(trace)
        return x, traces

    def final_norm(self, x: Tensor, fast: FastWeights) -> Tensor:
        """Apply the norm behind the last layer to x [B, T, D]."""
        return rms_norm(x, self.model.norm.weight, self.norm_eps, fast, "model.norm")

    def attention_to_prefix(
        self, input_ids: Tensor, state: State, fast: FastWeights, layers: Sequence[int]
    ) -> list[Tensor]:
        """Compute how the last of input_ids [B, T] attends to a state's P tokens, in the graph.

        Args:
            layers: some of ``attention_layers``, in ascending order. The last is not finished, and
                none above it is run.

        Returns:
            One [B, Hq, P] a layer: the weights of a softmax over the P tokens and the T new ones.

        Raises:
            TypeError: a layer is none of ``attention_layers``.
        """
        raise TypeError(f"layers {layers} have no softmax attention to all tokens")

    # -- head -----------------------------------------------------------------------------------

    def head(self, fast: FastWeights) -> Tensor:
        """Return the LM head's weight: [V, D], or [R, V, D] when the requests own it."""
        own = fast.get(self.embed_name + ".weight" if self.tied else "lm_head.weight")
        return self.lm_head.weight if own is None else own

    def head_logits(self, hidden: Tensor, fast: FastWeights) -> Tensor:
        """Compute logits [N, V] of a few hidden states [N, D], the requests' rows side by side."""
        return logits(hidden, self.head(fast))

    def token_stats(
        self, hidden: Tensor, targets: Tensor, fast: FastWeights, temperature: float = 1.0
    ) -> tuple[Tensor, Tensor]:
        """Compute log-probabilities of targets [N, T] and entropies after hidden [N, T, D].

        Both are [N, T]. N is a multiple of the number of requests.
        """
        return token_stats(hidden, self.head(fast), targets, temperature)

    # -- fast weights ---------------------------------------------------------------------------

    def lora_weights(self, modules: Sequence[str], rank: int, seed: int) -> dict[str, Tensor]:
        """Make LoRA for the named projections: A [1, in, r] random, B [1, r, out] zero."""
        weights = {name: self.get_parameter(f"{name}.weight") for name in modules}
        widths = {name: (w.shape[1], w.shape[0]) for name, w in weights.items()}
        return new_low_rank_updates(widths, rank, seed, self.lm_head.weight)

    def initial_memories(
        self, modules: Sequence[str], shape: tuple[int, int, int]
    ) -> dict[str, Tensor]:
        """Make learnable initial memories [1, H, K, V] of delta-rule layers: zeros, as without."""
        dtype = torch.promote_types(self.dtype, torch.float32)
        return {
            f"{name}.state": torch.zeros(1, *shape, dtype=dtype, device=self.device)
            for name in modules
        }

    def full_copy(self) -> FastWeights:
        """Copy every parameter for one request (``targets = all``, as in the paper)."""
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
        for source in (self.config, self.generation_config, self.tokenizer):
            ids = getattr(source, "eos_token_id", None)
            found.update(ids if isinstance(ids, list | tuple) else [] if ids is None else [ids])
        return frozenset(found)

    def fingerprint(self) -> str:
        """Hash the base weights (SHA-256): names, shapes, types and every bit of their values."""
        return base_weights.fingerprint(self.named_parameters())

    @property
    def num_parameters(self) -> int:
        """Number of base weights, shared ones counted once."""
        return sum(p.numel() for p in self.parameters())
