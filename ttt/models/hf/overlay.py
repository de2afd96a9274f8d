"""The overlay: fast weights on any Llama-like transformers model.

A request owns low-rank deltas on ``mlp.down_proj`` of the last quarter of the layers, as in
In-Place TTT (arXiv 2604.06169) and TTT-E2E (arXiv 2512.23675).
"""

import hashlib
from typing import Any

import torch
from torch import Tensor

from refine_server.ttt.fast_weights import FastWeights
from refine_server.ttt.models.base import ModelError
from refine_server.ttt.models.hf.attention import PROJECTIONS, attention
from refine_server.ttt.models.hf.base import MLP_PROJECTIONS, HFCausalLM, Rotary
from refine_server.ttt.models.hf.fast_decode import FEW, TokenLayer, token_layer
from refine_server.ttt.models.state import KVState, LayerState, Trace

ATTENTION_PROJECTIONS = tuple(f"self_attn.{p}" for p in PROJECTIONS)


class Overlay(HFCausalLM):
    """A Llama-like causal LM of transformers, with full or sliding-window attention by layer."""

    family = "overlay"
    limit: int | None = None

    def limit_window(self, tokens: int) -> None:
        """Have no layer see more than the last ``tokens`` tokens, the present one included.

        A state is then never larger than that window, however long the document, and a document is
        read piece by piece. What slid out of the window is known from the fast weights alone.
        """
        if tokens < 1:
            raise ModelError(f"window: {tokens} is no number of tokens")
        self.limit = self.piece_tokens = tokens

    def fingerprint(self) -> str:
        """See ``CausalLM.fingerprint``; a state that was made under another window is another's."""
        own = super().fingerprint()
        if self.limit is None:
            return own
        return hashlib.sha256(f"{own} window {self.limit}".encode()).hexdigest()

    @property
    def cuts_states(self) -> bool:
        """See ``CausalLM.cuts_states``; what slid out of a window would be missing."""
        return all(self.window(index) is None for index in range(self.num_layers))

    def required_parts(self) -> tuple[str, ...]:
        """See ``HFCausalLM.required_parts``."""
        parts = (*ATTENTION_PROJECTIONS, *MLP_PROJECTIONS, "post_attention_layernorm")
        return ("model.rotary_emb", *(f"model.layers.0.{part}" for part in parts))

    def lay_out(self) -> None:
        """See ``HFCausalLM.lay_out``."""
        super().lay_out()
        self.token_layers = [self._token_layer(i) for i in range(self.num_layers)]

    def block(
        self,
        index: int,
        x: Tensor,
        state: LayerState | None,
        fast: FastWeights,
        context: dict[str | None, Rotary],
    ) -> tuple[Tensor, Trace]:
        """See ``HFCausalLM.block``; a few tokens of one sequence go through ``TokenLayer``."""
        layer, rotary = self.token_layers[index], self._rotary(index, context)
        if (
            (layer is None or self.limit is not None or index in fast.layers)
            or (rotary is None or rotary[0].shape[-1] < layer.head_dim)
            or (x.shape[0] > 1 or x.shape[1] > FEW)
            or (not isinstance(state, KVState) or torch.is_grad_enabled())
        ):
            return super().block(index, x, state, fast, context)
        return layer.read(x, state, *rotary)

    def _token_layer(self, index: int) -> TokenLayer | None:
        layout, joined = self.layouts[index], self.joined[index]
        names = layout.before_mixer, layout.before_mlp
        others = layout.after_mixer, layout.after_mlp
        if joined.qkv is None or None in names or others != (None, None):
            return None
        if self.window(index) is not None:
            return None
        first, second = (self.norms[f"model.layers.{index}.{name}"] for name in names)
        return token_layer(self.model.layers[index], first, second, joined)

    def mix(
        self,
        index: int,
        h: Tensor,
        state: Any,
        fast: FastWeights,
        context: dict[str | None, Rotary],
    ) -> tuple[Tensor, Trace]:
        """See ``HFCausalLM.mix``."""
        rotary = self._rotary(index, context)
        return attention(self, index, h, state, fast, rotary, self.window(index))

    def _rotary(self, index: int, context: dict[str | None, Rotary]) -> Rotary:
        if not getattr(self.model.layers[index].self_attn, "use_rope", True):
            return None
        kind = self.layer_type(index)
        return context[kind] if kind in context else context[None]

    def layer_type(self, index: int) -> str | None:
        """What the configuration calls the layer's attention, if it distinguishes."""
        types = getattr(self.config, "layer_types", None)
        return None if types is None else str(types[index])

    def window(self, index: int) -> int | None:
        """The layer's sliding window in tokens, the token itself included; None: full attention."""
        windows = [w for w in (self.limit, self._own_window(index)) if w is not None]
        return min(windows, default=None)

    def _own_window(self, index: int) -> int | None:
        kind = self.layer_type(index)
        if kind not in (None, "full_attention", "sliding_attention"):
            raise ModelError(f"{self.config.model_type}: layer type {kind!r} is not supported")
        if kind == "full_attention" or not getattr(self.config, "use_sliding_window", True):
            return None
        window = getattr(self.config, "sliding_window", None)
        return int(window) if window else None

    def new_fast_weights(self, targets: str, rank: int, seed: int) -> FastWeights:
        """See ``CausalLM.new_fast_weights``."""
        if targets == "all":
            return self.full_copy()
        projections = (
            ("mlp.down_proj",)
            if targets == "fast_weights"
            else (*ATTENTION_PROJECTIONS, *MLP_PROJECTIONS)
        )
        first = self.num_layers - max(1, self.num_layers // 4)
        names = [
            f"model.layers.{i}.{p}" for i in range(first, self.num_layers) for p in projections
        ]
        return FastWeights(self.low_rank_weights(names, rank, seed))
