"""Gated DeltaNet (arXiv 2412.06464) in the layout of flash-linear-attention.

As DeltaNet, with a memory that decays before every write:

    alpha_t = exp(-exp(A_log) softplus(h_t W_a + dt_bias))                # [B, T, H]
    S_t     = alpha_t S_{t-1} + beta_t k_t^T (v_t - alpha_t k_t S_{t-1})  # [B, H, K, V]
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import override

from refine_server.ttt.fast_weights import FastWeights
from refine_server.ttt.models.families.fla.delta_net import (
    DeltaNet,
    DeltaNetAttention,
    DeltaNetConfig,
)
from refine_server.ttt.models.families.registry import register_native
from refine_server.ttt.models.layers.delta_rule import log_decay
from refine_server.ttt.models.layers.functional import linear


@dataclass(frozen=True, kw_only=True)
class GatedDeltaNetConfig(DeltaNetConfig):
    """The fields of fla's ``gated_deltanet`` config that change what is computed."""

    num_heads: int = 6
    num_v_heads: int | None = None
    head_dim: int = 256
    expand_v: float = 2.0
    use_gate: bool = True
    output_gate_activation: str = "swish"

    @override
    def fixed(self) -> dict[str, tuple[Any, ...]]:
        heads = self.num_v_heads
        return super().fixed() | {
            "use_beta": (True,),
            "output_gate_activation": ("swish", "silu"),
            "num_v_heads": (heads if heads is None or heads % self.num_heads == 0 else None,),
        }

    @property
    @override
    def decays(self) -> bool:
        return True

    @property
    @override
    def memory_shape(self) -> tuple[int, int, int]:
        """H, K and V: heads of values, and the channels of a head's keys and values."""
        return self.num_v_heads or self.num_heads, self.head_dim, int(self.head_dim * self.expand_v)


class GatedDeltaNetAttention(DeltaNetAttention):
    """The parameters of one gated delta-rule layer, under fla's names."""

    def __init__(self, config: GatedDeltaNetConfig) -> None:
        super().__init__(config)
        H = config.memory_shape[0]
        self.a_proj = nn.Linear(config.hidden_size, H, bias=False)
        self.A_log = nn.Parameter(torch.zeros(H))
        self.dt_bias = nn.Parameter(torch.zeros(H))


@register_native("gated_deltanet", config=GatedDeltaNetConfig)
class GatedDeltaNet(DeltaNet):
    """Gated DeltaNet: a DeltaNet whose memory decays, and whose heads may share keys in groups."""

    family = "gated_delta_net"
    attention = GatedDeltaNetAttention

    @override
    def _strengths(
        self, attn: GatedDeltaNetAttention, h: Tensor, fast: FastWeights, name: str
    ) -> tuple[Tensor, Tensor]:
        beta, _ = super()._strengths(attn, h, fast, name)
        a = linear(h, attn.a_proj, fast, f"{name}.a_proj")
        return beta, log_decay(a, attn, fast, name)
