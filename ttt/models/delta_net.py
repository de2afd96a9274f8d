"""DeltaNet (arXiv 2406.06484) in the layout of flash-linear-attention: same config, same names."""

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from refine_server.kernels import dispatch
from refine_server.ttt.fast_weights import FastWeights
from refine_server.ttt.models.fla import MLP_PROJECTIONS, FlaCausalLM, FlaConfig, RMSNorm
from refine_server.ttt.models.layers import linear, per_row, rms_norm
from refine_server.ttt.models.state import DeltaState, DeltaTrace, pad_conv

L2_EPS = 1e-6  # fla's l2norm: x / sqrt(sum x² + eps)
FAST_PROJECTIONS = ("attn.q_proj", "attn.k_proj", "attn.v_proj", "attn.o_proj")
LOW_RANK_PROJECTIONS = (*FAST_PROJECTIONS, *MLP_PROJECTIONS)


@dataclass(frozen=True, kw_only=True)
class DeltaNetConfig(FlaConfig):
    """The fields of fla's ``delta_net`` config that change what is computed."""

    num_heads: int
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


class DeltaNetAttention(nn.Module):
    """The parameters of one delta-rule layer, under fla's names."""

    def __init__(self, config: DeltaNetConfig) -> None:
        super().__init__()
        width = config.hidden_size
        key_dim, value_dim = int(width * config.expand_k), int(width * config.expand_v)
        self.q_proj = nn.Linear(width, key_dim, bias=False)
        self.k_proj = nn.Linear(width, key_dim, bias=False)
        self.v_proj = nn.Linear(width, value_dim, bias=False)
        if config.use_beta:
            self.b_proj = nn.Linear(width, config.num_heads, bias=False)
        if config.use_short_conv:
            self.q_conv1d = _conv(key_dim, config.conv_size)
            self.k_conv1d = _conv(key_dim, config.conv_size)
            self.v_conv1d = _conv(value_dim, config.conv_size)
        if config.use_gate:
            self.g_proj = nn.Linear(width, value_dim, bias=False)
        self.o_norm = RMSNorm(value_dim // config.num_heads)
        self.o_proj = nn.Linear(value_dim, width, bias=False)


class DeltaNet(FlaCausalLM):
    """DeltaNet with an explicit state: memory [B, H, K, V] and the convolutions' last inputs.

    Fast weights of a request: an initial memory S₀ for every layer and low-rank deltas on the
    layer's projections; S₀ alone fades over a long document because the delta rule overwrites it.
    """

    family = "delta_net"
    config: DeltaNetConfig

    def __init__(self, config: DeltaNetConfig) -> None:
        super().__init__(config, partial(DeltaNetAttention, config))

    def context(self, x: Tensor, position: Tensor) -> None:
        """Nothing: the delta rule knows no positions."""

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
        H = self.config.num_heads
        qkv = [
            linear(h, getattr(attn, p), fast, f"{name}.{p}") for p in ("q_proj", "k_proj", "v_proj")
        ]
        qkv, conv_inputs = self._convolve(attn, qkv, state, fast, name)
        q, k, v = (y.view(B, T, H, -1).transpose(1, 2) for y in map(F.silu, qkv))  # [B, H, T, K|V]
        q, k = _l2_norm(q), _l2_norm(k)
        beta = self._beta(attn, h, fast, name)  # [B, H, T]
        memory = state.memory if state is not None else fast.get(f"{name}.state")
        if memory is not None:
            memory = per_row(memory, B)
        o, boundary = dispatch.delta_rule(q, k, v, beta, memory)
        o = rms_norm(o.transpose(1, 2), attn.o_norm.weight, self.norm_eps, fast, f"{name}.o_norm")
        if self.config.use_gate:
            gate = linear(h, attn.g_proj, fast, f"{name}.g_proj")
            o = o * F.silu(gate.view(o.shape))
        y = linear(o.reshape(B, T, -1), attn.o_proj, fast, f"{name}.o_proj")
        return y, DeltaTrace(k, v, beta, boundary, conv_inputs)

    def _convolve(
        self,
        attn: Any,
        qkv: list[Tensor],
        state: DeltaState | None,
        fast: FastWeights,
        name: str,
    ) -> tuple[list[Tensor], Tensor | None]:
        if not self.config.use_short_conv:
            return qkv, None
        sizes = [y.shape[-1] for y in qkv]
        x = torch.cat(qkv, dim=-1)  # [B, T, C]
        W = self.config.conv_size
        inputs = pad_conv(None if state is None else state.conv, x, W)
        taps = torch.cat(
            [
                _taps(getattr(attn, c).weight, fast, f"{name}.{c}", x.shape[0])
                for c in ("q_conv1d", "k_conv1d", "v_conv1d")
            ],
            dim=-2,
        )
        y = dispatch.short_conv(x, taps.to(x.dtype), inputs[:, : W - 1])
        return list(y.split(sizes, dim=-1)), inputs

    def _beta(self, attn: Any, h: Tensor, fast: FastWeights, name: str) -> Tensor:
        if not self.config.use_beta:
            return h.new_ones(h.shape[0], self.config.num_heads, h.shape[1])
        beta = linear(h, attn.b_proj, fast, f"{name}.b_proj").sigmoid().mT  # [B, H, T]
        return beta * 2 if self.config.allow_neg_eigval else beta

    def new_fast_weights(self, targets: str, rank: int, seed: int) -> FastWeights:
        """See ``CausalLM.new_fast_weights``."""
        if targets == "all":
            return self.full_copy()
        projections = FAST_PROJECTIONS if targets == "fast_weights" else LOW_RANK_PROJECTIONS
        layers = range(self.num_layers)
        tensors = self.low_rank_weights(
            [f"model.layers.{i}.{p}" for i in layers for p in projections], rank, seed
        )
        if targets == "fast_weights":
            H, D = self.config.num_heads, self.config.hidden_size
            K, V = int(D * self.config.expand_k) // H, int(D * self.config.expand_v) // H
            dtype = torch.promote_types(self.dtype, torch.float32)
            for i in layers:
                empty = torch.zeros(1, H, K, V, dtype=dtype, device=self.device)
                tensors[f"model.layers.{i}.attn.state"] = empty
        return FastWeights(tensors)


def _conv(channels: int, width: int) -> nn.Conv1d:
    return nn.Conv1d(channels, channels, width, groups=channels, bias=False)


def _taps(weight: Tensor, fast: FastWeights, name: str, rows: int) -> Tensor:
    """A convolution's taps: [C, W], or [rows, C, W] when the requests own them."""
    own = fast.get(f"{name}.weight")
    return weight[:, 0] if own is None else per_row(own[:, :, 0], rows)


def _l2_norm(x: Tensor) -> Tensor:
    return x * torch.rsqrt(x.square().sum(-1, keepdim=True) + L2_EPS)
