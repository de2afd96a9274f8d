"""DeltaNet (arXiv 2406.06484) in the layout of flash-linear-attention: same config, same names."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from refine_server.kernels import dispatch
from refine_server.ttt.fast_weights import FastWeights
from refine_server.ttt.models.fla.base import MLP_PROJECTIONS, FlaCausalLM, FlaConfig, RMSNorm
from refine_server.ttt.models.fla.delta_layer import convolve, delta_rule
from refine_server.ttt.models.fla.fast_decode import DirectLayer, direct_layers, row_norm
from refine_server.ttt.models.layers.functional import linear, rms_norm
from refine_server.ttt.models.layers.packing import join
from refine_server.ttt.models.state import DeltaState, DeltaTrace, LayerState

FAST_PROJECTIONS = ("attn.q_proj", "attn.k_proj", "attn.v_proj", "attn.o_proj")
LOW_RANK_PROJECTIONS = (*FAST_PROJECTIONS, *MLP_PROJECTIONS)


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

    def fixed(self) -> dict[str, tuple[Any, ...]]:
        """See ``FlaConfig.fixed``."""
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
    def memory_shape(self) -> tuple[int, int, int]:
        """Heads, and the channels of a head's keys and values."""
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


class DeltaNet(FlaCausalLM):
    """DeltaNet with an explicit state: memory [B, H, K, V] and the convolutions' last inputs.

    Fast weights of a request: an initial memory S₀ for every layer and low-rank deltas on the
    layer's projections; S₀ alone fades over a long document because the delta rule overwrites it.
    """

    family = "delta_net"
    attention: ClassVar[type[nn.Module]] = DeltaNetAttention
    config: DeltaNetConfig

    def __init__(self, config: DeltaNetConfig) -> None:
        super().__init__(config)
        self.direct: list[DirectLayer] | None = None

    def context(self, x: Tensor, position: Tensor) -> None:
        """Nothing: the delta rule knows no positions."""

    def lay_out(self) -> None:
        """See ``CausalLM.lay_out``."""
        join([self.lm_head])
        self.direct = None if dispatch.definitions_only() else direct_layers(self)
        self.direct_norm = row_norm(self.model.norm, self.norm_eps)

    def read_on(
        self,
        x: Tensor,
        states: Sequence[LayerState | None],
        position: Tensor,
        fast: FastWeights,
    ) -> tuple[Tensor, tuple[LayerState, ...]]:
        """See ``CausalLM.read_on``; without a graph, from states, through ``DirectLayer``."""
        before = [state for state in states if isinstance(state, DeltaState)]
        if (self.direct is None or torch.is_grad_enabled()) or (
            not fast.is_delta or len(before) < len(states)
        ):
            return super().read_on(x, states, position, fast)
        after = []
        for layer, state in zip(self.direct, before, strict=True):
            x, own = layer.read(x, state, fast)
            after.append(own)
        return self.direct_norm(x), tuple(after)

    def _mix(
        self,
        attn: Any,
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
        self, attn: Any, h: Tensor, state: DeltaState | None, fast: FastWeights, name: str
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Queries, keys and values [B, T, heads · channels], and the convolutions' inputs."""
        qkv = [
            linear(h, getattr(attn, p), fast, f"{name}.{p}") for p in ("q_proj", "k_proj", "v_proj")
        ]
        if not self.config.use_short_conv:
            q, k, v = map(F.silu, qkv)
            return q, k, v, None
        convs = [(f"{name}.{c}_conv1d", getattr(attn, f"{c}_conv1d")) for c in "qkv"]
        y, inputs = convolve(torch.cat(qkv, dim=-1), convs, state, fast)
        q, k, v = y.split([x.shape[-1] for x in qkv], dim=-1)
        return q, k, v, inputs

    def _strengths(
        self, attn: Any, h: Tensor, fast: FastWeights, name: str
    ) -> tuple[Tensor, Tensor | None]:
        """How strongly each token writes, beta [B, T, H], and how much the memory decays, g."""
        if self.config.use_beta:
            beta = linear(h, attn.b_proj, fast, f"{name}.b_proj").sigmoid()
        else:
            beta = h.new_ones(*h.shape[:2], self.config.memory_shape[0])
        return beta * 2 if self.config.allow_neg_eigval else beta, None

    def new_fast_weights(self, targets: str, rank: int, seed: int) -> FastWeights:
        """See ``CausalLM.new_fast_weights``."""
        if targets == "all":
            return self.full_copy()
        projections = FAST_PROJECTIONS if targets == "fast_weights" else LOW_RANK_PROJECTIONS
        layers = [f"model.layers.{i}" for i in range(self.num_layers)]
        names = [f"{layer}.{p}" for layer in layers for p in projections]
        tensors = self.low_rank_weights(names, rank, seed)
        if targets == "fast_weights":
            tensors |= self.empty_memories(
                [f"{layer}.attn" for layer in layers], self.config.memory_shape
            )
        return FastWeights(tensors)


def _conv(channels: int, width: int) -> nn.Conv1d:
    return nn.Conv1d(channels, channels, width, groups=channels, bias=False)
