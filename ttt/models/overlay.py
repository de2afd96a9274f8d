"""The overlay: fast weights on any Llama-like transformers model.

A request owns low-rank deltas on ``mlp.down_proj`` of the last quarter of the layers, as in
In-Place TTT (arXiv 2604.06169) and TTT-E2E (arXiv 2512.23675). Weights, configuration and rotary
tables are transformers'; the forward is ours, because branches must share a document's keys and
values inside the graph. ``_check_parity`` compares the two when a model is loaded, so an
architecture that is Llama-like in name only is refused instead of being served wrongly.
"""

from typing import Any

import torch
from torch import Tensor, nn

from refine_server.ttt.fast_weights import FastWeights
from refine_server.ttt.models.attention import attend, rotate
from refine_server.ttt.models.base import CausalLM, ModelError
from refine_server.ttt.models.layers import linear, rms_norm
from refine_server.ttt.models.state import KVState, KVTrace

ATTENTION_PROJECTIONS = (
    "self_attn.q_proj",
    "self_attn.k_proj",
    "self_attn.v_proj",
    "self_attn.o_proj",
)
MLP_PROJECTIONS = ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")


class Overlay(CausalLM):
    """A Llama-like causal LM of transformers with an explicit key-value state."""

    family = "overlay"
    embed_name = "model.embed_tokens"

    def __init__(self, causal_lm: Any) -> None:
        """Take over a transformers model; raise ModelError when it is not Llama-like."""
        super().__init__()
        _require_llama_like(causal_lm)
        self.config = causal_lm.config
        self.model = causal_lm.model
        self.lm_head = causal_lm.lm_head
        self.norm_eps = self.model.norm.variance_epsilon
        self.requires_grad_(False)
        self._check_parity(causal_lm)

    def context(self, x: Tensor, position: Tensor) -> tuple[Tensor, Tensor]:
        """Rotary cosines and sines for the tokens of x [B, T, D]: [B, 1, T, D_head] each."""
        at = position[:, None] + torch.arange(x.shape[1], device=x.device)  # [B, T]
        cos, sin = self.model.rotary_emb(x, at)
        return cos[:, None], sin[:, None]

    def block(
        self,
        index: int,
        x: Tensor,
        state: Any,
        fast: FastWeights,
        context: tuple[Tensor, Tensor],
    ) -> tuple[Tensor, KVTrace]:
        """One layer: attention, then gated MLP, each on a normed residual stream."""
        layer, name = self.model.layers[index], f"model.layers.{index}"
        h = self._norm(x, layer.input_layernorm, fast, f"{name}.input_layernorm")
        mixed, trace = self._attend(layer.self_attn, h, state, fast, f"{name}.self_attn", context)
        x = x + mixed
        h = self._norm(x, layer.post_attention_layernorm, fast, f"{name}.post_attention_layernorm")
        gate = linear(h, layer.mlp.gate_proj, fast, f"{name}.mlp.gate_proj")
        up = linear(h, layer.mlp.up_proj, fast, f"{name}.mlp.up_proj")
        inner = layer.mlp.act_fn(gate) * up
        return x + linear(inner, layer.mlp.down_proj, fast, f"{name}.mlp.down_proj"), trace

    def _attend(
        self,
        attn: Any,
        h: Tensor,
        state: KVState | None,
        fast: FastWeights,
        name: str,
        context: tuple[Tensor, Tensor],
    ) -> tuple[Tensor, KVTrace]:
        B, T, _ = h.shape
        q, k, v = (
            linear(h, getattr(attn, p), fast, f"{name}.{p}").view(B, T, -1, attn.head_dim)
            for p in ("q_proj", "k_proj", "v_proj")
        )
        if hasattr(attn, "q_norm"):
            q = self._norm(q, attn.q_norm, fast, f"{name}.q_norm")
            k = self._norm(k, attn.k_norm, fast, f"{name}.k_norm")
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)  # [B, Hq|H, T, D]
        q, k = rotate(q, *context), rotate(k, *context)
        o, trace = attend(q, k, v, state, scale=attn.scaling, window=self._window(attn))
        y = linear(o.transpose(1, 2).reshape(B, T, -1), attn.o_proj, fast, f"{name}.o_proj")
        return y, trace

    def _norm(self, x: Tensor, module: Any, fast: FastWeights, name: str) -> Tensor:
        return rms_norm(x, module.weight, module.variance_epsilon, fast, name)

    def _window(self, attn: Any) -> int | None:
        """The layer's sliding window in tokens, itself included, or None for full attention."""
        if hasattr(attn, "sliding_window"):
            window = attn.sliding_window
        else:
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

    @torch.no_grad()
    def _check_parity(self, causal_lm: nn.Module) -> None:
        """Compare with transformers' own forward on a few tokens."""
        vocabulary = self.config.vocab_size
        ids = torch.arange(3, 3 + 7 * 16, 7, device=self.device)[None] % vocabulary
        theirs = causal_lm(input_ids=ids, use_cache=False).logits.float()
        ours = self(ids).logits.float()
        error = (ours - theirs).abs().max() / theirs.abs().max().clamp_min(1e-6)
        if not error <= (1e-3 if self.dtype.itemsize >= 4 else 5e-2):
            raise ModelError(
                f"{self.config.model_type}: the model is not Llama-like: its logits differ from "
                f"transformers' own by {float(error):.2g} of their range"
            )


def _require_llama_like(causal_lm: nn.Module) -> None:
    """Name the first part that the overlay needs and the model lacks."""
    needed = [
        "model.embed_tokens",
        "model.layers.0.input_layernorm",
        "model.layers.0.post_attention_layernorm",
        *(f"model.layers.0.{p}" for p in (*ATTENTION_PROJECTIONS, *MLP_PROJECTIONS)),
        "model.rotary_emb",
        "model.norm",
        "lm_head",
    ]
    for name in needed:
        try:
            module = causal_lm.get_submodule(name)
        except AttributeError:
            kind = type(causal_lm).__name__
            raise ModelError(f"{kind} is not Llama-like: it has no {name}") from None
        if name.endswith("norm") and not hasattr(module, "variance_epsilon"):
            raise ModelError(f"{type(causal_lm).__name__} is not Llama-like: {name} is no RMSNorm")
