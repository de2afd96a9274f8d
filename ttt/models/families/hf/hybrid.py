"""Hybrids of delta-rule and softmax-attention layers, as transformers defines them.

Qwen3-Next, Qwen3.5, OLMo Hybrid (gated delta rule, arXiv 2412.06464) and Kimi Linear (decay by
channel, arXiv 2510.26692). The forward is ``HFCausalLM``'s; the token mixer of a layer, over normed
tokens h [B, T, D], is ``attention`` (Kimi: ``latent_attention``) or, in most layers,

    q, k, v     = silu(conv(h W_qkv))               # [B, T, H, K | V]
    q, k        = q / |q|, k / |k|
    beta, alpha = sigmoid(h W_b), exp(g(h W_a))     # write strength, decay
    S_t         = alpha_t S_{t-1} + beta_t k_t^T (v_t - alpha_t k_t S_{t-1})
    return      (rms_norm(q_t S_t / sqrt(K)) * act(h W_z)) W_o

A delta-rule layer's state has constant size; an attention layer's keys and values grow with the
document, and branches share them.
"""

from typing import Any

from torch import Tensor
from typing_extensions import override

from refine_server.ttt.fast_weights import FastWeights
from refine_server.ttt.models.families.hf.attention import (
    PROJECTIONS,
    attention,
    latent_attention,
    project,
    project_latent,
)
from refine_server.ttt.models.families.hf.base import MLP_PROJECTIONS, HFCausalLM, RotaryTables
from refine_server.ttt.models.families.hf.delta import (
    KIMI_LINEAR,
    OLMO_HYBRID,
    QWEN3_5,
    QWEN3_NEXT,
    DeltaKind,
    delta_attention,
    query_delta,
)
from refine_server.ttt.models.families.registry import register_transformers
from refine_server.ttt.models.layers.attention import AttentionInputs
from refine_server.ttt.models.layers.low_rank import new_low_rank_updates
from refine_server.ttt.models.state import DeltaState, KVState, Trace

KINDS: dict[str, DeltaKind] = {
    "kimi_linear": KIMI_LINEAR,
    "olmo_hybrid": OLMO_HYBRID,
    "qwen3_5": QWEN3_5,
    "qwen3_5_text": QWEN3_5,
    "qwen3_next": QWEN3_NEXT,
}
"""The delta-rule layer of every supported model type."""


@register_transformers(*KINDS)
class Hybrid(HFCausalLM):
    """A hybrid with explicit states: a memory and a convolution's inputs, or keys and values.

    Fast weights of a request: those of DeltaNet, an initial memory and LoRA on the projections, in
    the delta-rule layers alone.
    """

    family = "hybrid"
    state_classes = frozenset({DeltaState, KVState})

    def __init__(self, causal_lm: Any) -> None:
        self.kind = KINDS[causal_lm.config.model_type]
        super().__init__(causal_lm)
        layers = range(self.num_layers)
        self.attention_layers = tuple(index for index in layers if not self._is_delta(index))

    @override
    def required_parts(self) -> tuple[str, ...]:
        return ("model.layers.0.mlp", "model.layers.0.post_attention_layernorm")

    @override
    def mix(
        self, index: int, h: Tensor, state: Any, fast: FastWeights, context: RotaryTables
    ) -> tuple[Tensor, Trace]:
        layer, name = self.model.layers[index], f"model.layers.{index}"
        if self._is_delta(index):
            attn = getattr(layer, self.kind.module)
            return delta_attention(self.kind, attn, h, state, fast, f"{name}.{self.kind.module}")
        if self.kind.latent_attention:
            return latent_attention(self, layer.self_attn, h, state, fast, f"{name}.self_attn")
        return attention(self, index, h, state, fast, context[None], None)

    @override
    def attention_inputs(
        self, index: int, h: Tensor, fast: FastWeights, context: RotaryTables
    ) -> AttentionInputs:
        if self.kind.latent_attention:
            attn, name = self.model.layers[index].self_attn, f"model.layers.{index}.self_attn"
            return project_latent(self, attn, h, fast, name)
        return project(self, index, h, fast, context[None])

    def _is_delta(self, index: int) -> bool:
        return self.settings.layer_type(index) == "linear_attention"

    @override
    def new_fast_weights(self, targets: str, rank: int, seed: int) -> FastWeights:
        if targets == "all":
            return self.full_copy()
        if targets == "queries":
            deltas = dict(self._query_delta(index) for index in range(self.num_layers))
            return FastWeights(new_low_rank_updates(deltas, rank, seed, self.lm_head.weight))
        names, memories = [], []
        for index, layer in enumerate(self.model.layers):
            under = f"model.layers.{index}"
            if self._is_delta(index):
                memories.append(f"{under}.{self.kind.module}")
                names += [f"{under}.{self.kind.module}.{p}" for p in self.kind.projections]
            elif targets == "low_rank":
                found = [p for p in PROJECTIONS if getattr(layer.self_attn, p, None) is not None]
                names += [f"{under}.self_attn.{p}" for p in found]
            if targets == "low_rank" and self.has_gated_mlp[index]:
                names += [f"{under}.{p}" for p in MLP_PROJECTIONS]
        tensors = self.lora_weights(names, rank, seed)
        if targets == "fast_weights":
            shape = self.kind.memory_shape(self.get_submodule(memories[0]))
            tensors |= self.initial_memories(memories, shape)
        return FastWeights(tensors)

    def _query_delta(self, index: int) -> tuple[str, tuple[int, int]]:
        """Return the name and the widths of the delta of a layer's queries."""
        under = self.kind.module if self._is_delta(index) else "self_attn"
        name, widths = query_delta(getattr(self.model.layers[index], under))
        return f"model.layers.{index}.{under}.{name}", widths
