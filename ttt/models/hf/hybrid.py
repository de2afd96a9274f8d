"""Hybrids of delta-rule and softmax-attention layers, as transformers defines them.

Qwen3-Next, Qwen3.5, OLMo Hybrid (gated delta rule, arXiv 2412.06464) and Kimi Linear (decay by
channel, arXiv 2510.26692). A delta-rule layer's state has constant size; an attention layer's keys
and values grow with the document, and branches share them.
"""

from typing import Any

from torch import Tensor

from refine_server.ttt.fast_weights import FastWeights
from refine_server.ttt.models.hf.attention import PROJECTIONS, attention, latent_attention
from refine_server.ttt.models.hf.base import MLP_PROJECTIONS, HFCausalLM, Rotary
from refine_server.ttt.models.hf.delta import (
    KIMI_LINEAR,
    OLMO_HYBRID,
    QWEN3_5,
    QWEN3_NEXT,
    DeltaKind,
    delta_attention,
    memory_shape,
)
from refine_server.ttt.models.state import Trace

KINDS: dict[str, DeltaKind] = {
    "kimi_linear": KIMI_LINEAR,
    "olmo_hybrid": OLMO_HYBRID,
    "qwen3_5": QWEN3_5,
    "qwen3_5_text": QWEN3_5,
    "qwen3_next": QWEN3_NEXT,
}
"""The delta-rule layer of every supported model type."""


class Hybrid(HFCausalLM):
    """A hybrid with explicit states: a memory and a convolution's inputs, or keys and values.

    Fast weights of a request: those of DeltaNet, an initial memory and low-rank deltas on the
    projections, in the delta-rule layers alone.
    """

    family = "hybrid"

    def __init__(self, causal_lm: Any) -> None:
        self.kind = KINDS[causal_lm.config.model_type]
        super().__init__(causal_lm)

    def required_parts(self) -> tuple[str, ...]:
        """See ``HFCausalLM.required_parts``."""
        return ("model.layers.0.mlp", "model.layers.0.post_attention_layernorm")

    def mix(
        self,
        index: int,
        h: Tensor,
        state: Any,
        fast: FastWeights,
        context: dict[str | None, Rotary],
    ) -> tuple[Tensor, Trace]:
        """See ``HFCausalLM.mix``."""
        layer, name = self.model.layers[index], f"model.layers.{index}"
        if self._is_delta(index):
            attn = getattr(layer, self.kind.module)
            return delta_attention(self.kind, attn, h, state, fast, f"{name}.{self.kind.module}")
        if hasattr(layer.self_attn, "kv_lora_rank"):
            return latent_attention(self, layer.self_attn, h, state, fast, f"{name}.self_attn")
        return attention(self, index, h, state, fast, context[None], None)

    def _is_delta(self, index: int) -> bool:
        return bool(self.config.layer_types[index] == "linear_attention")

    def new_fast_weights(self, targets: str, rank: int, seed: int) -> FastWeights:
        """See ``CausalLM.new_fast_weights``."""
        if targets == "all":
            return self.full_copy()
        names, memories = [], []
        for index, layer in enumerate(self.model.layers):
            under = f"model.layers.{index}"
            if self._is_delta(index):
                memories.append(f"{under}.{self.kind.module}")
                names += [f"{under}.{self.kind.module}.{p}" for p in self.kind.projections]
            elif targets == "low_rank":
                found = [p for p in PROJECTIONS if getattr(layer.self_attn, p, None) is not None]
                names += [f"{under}.self_attn.{p}" for p in found]
            if targets == "low_rank" and hasattr(layer.mlp, "gate_proj"):
                names += [f"{under}.{p}" for p in MLP_PROJECTIONS]
        tensors = self.low_rank_weights(names, rank, seed)
        if targets == "fast_weights":
            shape = memory_shape(self.get_submodule(memories[0]))
            tensors |= self.empty_memories(memories, shape)
        return FastWeights(tensors)
