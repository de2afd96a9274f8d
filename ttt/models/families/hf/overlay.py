"""The overlay: fast weights on any Llama-like transformers model.

The forward is ``HFCausalLM``'s; the token mixer of layer i, over normed tokens h [B, T, D], is

    q, k, v = h W_q, h W_k, h W_v           # [B, Hq | H, T, d]; normed where the model norms them
    q, k    = rotate(q), rotate(k)          # not in layers without positions
    o       = softmax(q k^T / sqrt(d)) v    # causal; a layer may see a window only
    return  o W_o                           # [B, T, D]

A request owns LoRA on ``mlp.down_proj`` of the last quarter of the layers, as in In-Place TTT
(arXiv 2604.06169) and TTT-E2E (arXiv 2512.23675). ``fast_decode`` computes the same for the few
tokens of a decode step.
"""

import hashlib
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from refine_server.kernels import dispatch
from refine_server.ttt.fast_weights import FastWeights
from refine_server.ttt.models.base import ModelError
from refine_server.ttt.models.families.hf.attention import PROJECTIONS, attention, project
from refine_server.ttt.models.families.hf.base import (
    MLP_PROJECTIONS,
    HFCausalLM,
    Rotary,
    RotaryTables,
)
from refine_server.ttt.models.families.hf.fast_decode import MAX_FAST_TOKENS, FastLayer, fast_layer
from refine_server.ttt.models.families.registry import OTHERS, register_transformers
from refine_server.ttt.models.layers.attention import AttentionInputs
from refine_server.ttt.models.state import KVState, LayerState, Trace, WindowKVState

ATTENTION_PROJECTIONS = tuple(f"self_attn.{p}" for p in PROJECTIONS)
LAYER_TYPES = (None, "full_attention", "sliding_attention")


@register_transformers(OTHERS)
class Overlay(HFCausalLM):
    """A Llama-like causal LM of transformers, with full or sliding-window attention by layer."""

    family = "overlay"
    window_limit: int | None = None
    """Tokens that every layer may see at most, set by ``limit_window``."""

    @override
    def limit_window(self, tokens: int) -> None:
        """Let no layer see more than the last ``tokens`` tokens, the present one included.

        A state is then never larger than that window, however long the document, and a document is
        read in chunks. What slid out of the window is known from the fast weights alone.
        """
        if tokens < 1:
            raise ModelError(f"window: {tokens} is not a positive number of tokens")
        self.window_limit = self.prefill_chunk = tokens
        self._choose_windows()

    @override
    def fingerprint(self) -> str:
        """Hash the base weights and the window: states of another window are another model's."""
        own = super().fingerprint()
        if self.window_limit is None:
            return own
        return hashlib.sha256(f"{own} window {self.window_limit}".encode()).hexdigest()

    @override
    def required_parts(self) -> tuple[str, ...]:
        parts = (*ATTENTION_PROJECTIONS, *MLP_PROJECTIONS, "post_attention_layernorm")
        return ("model.rotary_emb", *(f"model.layers.0.{part}" for part in parts))

    @override
    def mix(
        self, index: int, h: Tensor, state: Any, fast: FastWeights, context: RotaryTables
    ) -> tuple[Tensor, Trace]:
        rotary = self._rotary(index, context)
        return attention(self, index, h, state, fast, rotary, self.windows[index])

    @override
    def attention_inputs(
        self, index: int, h: Tensor, fast: FastWeights, context: RotaryTables
    ) -> AttentionInputs:
        return project(self, index, h, fast, self._rotary(index, context))

    def _rotary(self, index: int, context: RotaryTables) -> Rotary:
        """Return the rotary tables of layer ``index``; None where it encodes no positions."""
        if not self.has_positions[index]:
            return None
        kind = self.settings.layer_type(index)
        return context[kind if kind in self.settings.rotary_types else None]

    @override
    def new_fast_weights(self, targets: str, rank: int, seed: int) -> FastWeights:
        if targets == "all":
            return self.full_copy()
        if targets == "queries":
            names = [f"model.layers.{i}.self_attn.q_proj" for i in range(self.num_layers)]
            return FastWeights(self.lora_weights(names, rank, seed))
        projections = (
            ("mlp.down_proj",)
            if targets == "fast_weights"
            else (*ATTENTION_PROJECTIONS, *MLP_PROJECTIONS)
        )
        first = self.num_layers - max(1, self.num_layers // 4)
        names = [
            f"model.layers.{i}.{p}" for i in range(first, self.num_layers) for p in projections
        ]
        return FastWeights(self.lora_weights(names, rank, seed))

    # -- windows --------------------------------------------------------------------------------

    @override
    def pack_weights(self) -> None:
        super().pack_weights()
        attentions = [layer.self_attn for layer in self.model.layers]
        self.has_positions = [getattr(attn, "use_rope", True) for attn in attentions]
        self._choose_windows()

    def _choose_windows(self) -> None:
        """Find each layer's window, and what follows from it."""
        self.windows = [self._window(index) for index in range(self.num_layers)]
        self.state_classes = frozenset(
            KVState if window is None else WindowKVState for window in self.windows
        )
        full = (index for index, window in enumerate(self.windows) if window is None)
        self.attention_layers = tuple(full)
        self.context_length = self._longest_sequence()
        layers = [self._fast_layer(index) for index in range(self.num_layers)]
        self.fast_layers = layers if any(layer is not None for layer in layers) else None

    def _window(self, index: int) -> int | None:
        """Return a layer's window in tokens, the token itself included; None: full attention."""
        kind = self.settings.layer_type(index)
        if kind not in LAYER_TYPES:
            raise ModelError(f"{self.config.model_type}: layer type {kind!r} is not supported")
        own = None if kind == "full_attention" else self.settings.sliding_window
        return min((w for w in (self.window_limit, own) if w is not None), default=None)

    def _longest_sequence(self) -> int | None:
        """Return the context length: any, where windows keep all tokens within known distances."""
        trained = self.settings.context_length
        widest = max((window or math.inf for window in self.windows), default=math.inf)
        return trained if trained is None or widest > trained else None

    # -- fast decode ----------------------------------------------------------------------------

    def _fast_layer(self, index: int) -> FastLayer | None:
        norms = self.block_norms[index]
        names = (f"model.layers.{index}.self_attn.{norm}" for norm in ("q_norm", "k_norm"))
        if (
            self.windows[index] is not None
            or norms.after_mixer is not None
            or norms.after_mlp is not None
            or any(name in self.norms for name in names)
        ):
            return None
        layer, packed = self.model.layers[index], self.packed[index]
        name = f"model.layers.{index}"
        found = fast_layer(layer, name, norms.before_mixer, norms.before_mlp, packed)
        return found if found is not None and self._rotates_all(index) else None

    def _rotates_all(self, index: int) -> bool:
        """Return whether a layer's rotary tables cover all channels of its heads."""
        x, position = self.embedding.weight[:1, None], torch.zeros(1, device=self.device)
        rotary = self._rotary(index, self.context(x, position))
        head_dim = self.model.layers[index].self_attn.head_dim
        return rotary is not None and rotary[0].shape[-1] == head_dim

    @override
    def _can_decode_fast(
        self, x: Tensor, states: Sequence[LayerState | None], fast: FastWeights
    ) -> bool:
        rows, tokens, _ = x.shape
        return (
            self.fast_layers is not None  # the weights are packed
            and rows == 1  # one sequence
            and tokens <= MAX_FAST_TOKENS  # a token and a draft
            and states[0] is not None  # which continues from a state
            and not torch.is_grad_enabled()  # nothing is differentiated
            and fast.is_lora  # under LoRA alone
            and (fast.is_base or not dispatch.definitions_only())  # whose products are not the op's
        )

    @override
    def _decode_fast(
        self, x: Tensor, states: Sequence[KVState], position: Tensor, fast: FastWeights
    ) -> tuple[Tensor, tuple[LayerState, ...]]:
        """Run each layer's fast form, or its block where it has none."""
        assert self.fast_layers is not None
        context = self.context(x, position)
        after: list[LayerState] = []
        for index, (layer, state) in enumerate(zip(self.fast_layers, states, strict=True)):
            rotary = self._rotary(index, context)
            if layer is None or rotary is None:
                x, trace = self.block(index, x, state, fast, context)
                after.append(trace.final())
            else:
                x, own = layer.decode(x, state, fast, *rotary)
                after.append(own)
        return self.final_norm(x, fast), tuple(after)
