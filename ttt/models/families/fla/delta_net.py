"""DeltaNet (arXiv 2406.06484) in the layout of flash-linear-attention: same config, same names.

The token mixer of one layer, over normed tokens h [B, T, D], with H heads of K and V channels:

    q, k, v  = silu(conv(h W_q)), silu(conv(h W_k)), silu(conv(h W_v))    # causal, depthwise
    q, k     = q / |q|, k / |k|                                           # [B, T, H, K]
    beta     = sigmoid(h W_b)                                             # [B, T, H], x 2 if asked
    S_t      = S_{t-1} + beta_t k_t^T (v_t - k_t S_{t-1})                 # [B, H, K, V]
    o_t      = q_t S_t / sqrt(K)                                          # [B, T, H, V]
    o        = rms_norm(o) * silu(h W_g)                                  # a gate, if configured
    return   o W_o                                                        # [B, T, D]

S_0 is zero, or the initial memory that a request owns. ``fast_decode`` computes the same for the
few tokens of a decode step.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import override

from refine_server.kernels import dispatch
from refine_server.ttt.fast_weights import FastWeights
from refine_server.ttt.models.families.fla.base import (
    MLP_PROJECTIONS,
    FlaCausalLM,
    FlaConfig,
    RMSNorm,
)
from refine_server.ttt.models.families.fla.fast_decode import (
    FastLayer,
    FastNorm,
    Sizes,
    fast_layers,
)
from refine_server.ttt.models.families.registry import register_native
from refine_server.ttt.models.layers.delta_rule import convolve, delta_rule
from refine_server.ttt.models.layers.functional import linear, linears, rms_norm
from refine_server.ttt.models.layers.packing import pack
from refine_server.ttt.models.state import DeltaState, DeltaTrace, LayerState

QKV = ("q_proj", "k_proj", "v_proj")
ATTENTION_PROJECTIONS = (*(f"attn.{p}" for p in QKV), "attn.o_proj")
PROJECTIONS = {
    "fast_weights": ATTENTION_PROJECTIONS,
    "low_rank": (*ATTENTION_PROJECTIONS, *MLP_PROJECTIONS),
    "queries": ("attn.q_proj",),
}
"""Of each layer, the projections that take LoRA, by targets."""


@dataclass(frozen=True, kw_only=True)
class DeltaNetConfig(FlaConfig):
    """The fields of fla's ``delta_net`` config that change what is computed."""

    num_heads: int = 16
    expand_k: float = 1.0
    expand_v: float = 1.0
    conv_size: int = 4
    use_beta: bool = True
    use_gate: bool = False
    use_short_conv: bool = True
    allow_neg_eigval: bool = False
    qk_norm: str = "l2"
    qk_activation: str = "silu"
    attn: None = None
    attnres_block_size: None = None

    @override
    def fixed(self) -> dict[str, tuple[Any, ...]]:
        return super().fixed() | {
            "qk_norm": ("l2",),
            "qk_activation": ("silu",),
            "attn": (None,),
            "attnres_block_size": (None,),
        }

    @property
    def key_heads(self) -> int:
        """Heads of queries and keys."""
        return self.num_heads

    @property
    def decays(self) -> bool:
        """Whether the memory decays, by a factor that is projected from every token."""
        return False

    @property
    def memory_shape(self) -> tuple[int, int, int]:
        """H, K and V: heads, and the channels of a head's keys and values."""
        H, width = self.num_heads, self.hidden_size
        return H, int(width * self.expand_k) // H, int(width * self.expand_v) // H


class DeltaNetAttention(nn.Module):
    """The parameters of one delta-rule layer, under fla's names."""

    def __init__(self, config: DeltaNetConfig) -> None:
        super().__init__()
        width, (H, K, V) = config.hidden_size, config.memory_shape
        key_dim, value_dim = config.key_heads * K, H * V
        self.q_proj = nn.Linear(width, key_dim, bias=False)
        self.k_proj = nn.Linear(width, key_dim, bias=False)
        self.v_proj = nn.Linear(width, value_dim, bias=False)
        if config.use_short_conv:
            self.q_conv1d = _conv(key_dim, config.conv_size)
            self.k_conv1d = _conv(key_dim, config.conv_size)
            self.v_conv1d = _conv(value_dim, config.conv_size)
        if config.use_gate:
            self.g_proj = nn.Linear(width, value_dim, bias=False)
        self.o_norm = RMSNorm(V)
        self.o_proj = nn.Linear(value_dim, width, bias=False)
        if config.use_beta:
            self.b_proj = nn.Linear(width, H, bias=False)


@register_native("delta_net", config=DeltaNetConfig)
class DeltaNet(FlaCausalLM):
    """DeltaNet with an explicit state: memory [B, H, K, V] and the convolutions' last inputs.

    Fast weights of a request: an initial memory S_0 for every layer and LoRA on the layer's
    projections; S_0 alone fades over a long document because the delta rule overwrites it.
    """

    family = "delta_net"
    attention: ClassVar[type[nn.Module]] = DeltaNetAttention
    state_classes = frozenset({DeltaState})
    config: DeltaNetConfig

    def __init__(self, config: DeltaNetConfig) -> None:
        super().__init__(config)
        self.fast_layers: list[FastLayer] | None = None

    @override
    def context(self, x: Tensor, position: Tensor) -> None:
        """Make nothing: the delta rule knows no positions."""

    @override
    def _mix(
        self,
        attn: DeltaNetAttention,
        h: Tensor,
        state: DeltaState | None,
        fast: FastWeights,
        name: str,
        context: None,
    ) -> tuple[Tensor, DeltaTrace]:
        B, T, _ = h.shape
        H, K, V = self.config.memory_shape
        q, k, v, conv_inputs = self._project(attn, h, state, fast, name)
        q, k, v = q.view(B, T, -1, K), k.view(B, T, -1, K), v.view(B, T, H, V)
        beta, g = self._strengths(attn, h, fast, name)
        initial = fast.get(f"{name}.state")
        o, trace = delta_rule(q, k, v, beta, g, state, initial, conv_inputs)
        o = rms_norm(o, attn.o_norm.weight, self.norm_eps, fast, f"{name}.o_norm")
        if self.config.use_gate:
            gate = linear(h, attn.g_proj, fast, f"{name}.g_proj")
            o = o * F.silu(gate.view(o.shape))
        return linear(o.reshape(B, T, -1), attn.o_proj, fast, f"{name}.o_proj"), trace

    def _project(
        self,
        attn: DeltaNetAttention,
        h: Tensor,
        state: DeltaState | None,
        fast: FastWeights,
        name: str,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Project to q, k, v [B, T, heads · channels]; also return the convolutions' inputs."""
        qkv = linears(h, attn, QKV, fast, name)
        if not self.config.use_short_conv:
            q, k, v = map(F.silu, qkv)
            return q, k, v, None
        convs = [
            (f"{name}.q_conv1d", attn.q_conv1d),
            (f"{name}.k_conv1d", attn.k_conv1d),
            (f"{name}.v_conv1d", attn.v_conv1d),
        ]
        y, inputs = convolve(torch.cat(qkv, dim=-1), convs, state, fast)
        q, k, v = y.split([x.shape[-1] for x in qkv], dim=-1)
        return q, k, v, inputs

    def _strengths(
        self, attn: Any, h: Tensor, fast: FastWeights, name: str
    ) -> tuple[Tensor, Tensor | None]:
        """Compute how strongly each token writes, beta [B, T, H], and the memory's decay g."""
        if self.config.use_beta:
            beta = linear(h, attn.b_proj, fast, f"{name}.b_proj").sigmoid()
        else:
            beta = h.new_ones(*h.shape[:2], self.config.memory_shape[0])
        return beta * 2 if self.config.allow_neg_eigval else beta, None

    @override
    def new_fast_weights(self, targets: str, rank: int, seed: int) -> FastWeights:
        if targets == "all":
            return self.full_copy()
        projections = PROJECTIONS[targets]
        layers = [f"model.layers.{i}" for i in range(self.num_layers)]
        names = [f"{layer}.{p}" for layer in layers for p in projections]
        tensors = self.lora_weights(names, rank, seed)
        if targets == "fast_weights":
            memories = [f"{layer}.attn" for layer in layers]
            tensors |= self.initial_memories(memories, self.config.memory_shape)
        return FastWeights(tensors)

    # -- fast decode ----------------------------------------------------------------------------

    @override
    def pack_weights(self) -> None:
        pack([self.lm_head])
        self.fast_layers = None if dispatch.definitions_only() else self._fast_layers()
        self.fast_norm = FastNorm.of(self.model.norm, self.norm_eps)

    def _fast_layers(self) -> list[FastLayer] | None:
        config, (H, K, V) = self.config, self.config.memory_shape
        sizes = Sizes(
            key_heads=config.key_heads,
            heads=H,
            K=K,
            V=V,
            gate=H * V * config.use_gate,
            beta=H * config.use_beta,
            decay=H * config.decays,
            max_beta=2.0 if config.allow_neg_eigval else 1.0,
        )
        return fast_layers(
            self.model.layers, sizes, norm_eps=config.norm_eps, short_conv=config.use_short_conv
        )

    @override
    def _can_decode_fast(
        self, x: Tensor, states: Sequence[LayerState | None], fast: FastWeights
    ) -> bool:
        return (
            self.fast_layers is not None  # the weights are packed
            and not torch.is_grad_enabled()  # nothing is differentiated
            and states[0] is not None  # the sequences continue from their states
            and fast.is_lora  # requests own LoRA alone (an initial memory is in the state)
        )

    @override
    def _decode_fast(
        self, x: Tensor, states: Sequence[DeltaState], position: Tensor, fast: FastWeights
    ) -> tuple[Tensor, tuple[DeltaState, ...]]:
        assert self.fast_layers is not None
        after = []
        for layer, state in zip(self.fast_layers, states, strict=True):
            x, own = layer.decode(x, state, fast)
            after.append(own)
        return self.fast_norm(x), tuple(after)


def _conv(channels: int, width: int) -> nn.Conv1d:
    return nn.Conv1d(channels, channels, width, groups=channels, bias=False)
