"""LaCT (arXiv 2505.23884) in the layout of its authors' language model: same config, same names.

Sliding-window attention and, on the same queries, keys and values, a SwiGLU memory that every
chunk of tokens rewrites by one gradient step.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from refine_server.kernels.lact_swiglu import NORM_EPS
from refine_server.ttt.fast_weights import FastWeights
from refine_server.ttt.models.fla.base import MLP_PROJECTIONS, FlaCausalLM, FlaConfig, RMSNorm
from refine_server.ttt.models.lact.memory import Memory, Rule, Writes
from refine_server.ttt.models.lact.state import LaCTState, LaCTTrace, Pending, read_and_write
from refine_server.ttt.models.layers.attention import attend, rotary_tables, rotate
from refine_server.ttt.models.layers.functional import linear, own_parameter, rms_norm

HEAD_NORM_EPS = 1e-5  # of the norms of q, k and the memory's output, whatever norm_eps is
BASE_RATE = 0.001  # learning rate where lr_proj gives 0
BASE_RATE_BIAS = BASE_RATE + math.log(-math.expm1(-BASE_RATE))  # softplus of it is BASE_RATE
IDENTITY = 0.5  # times the identity, added to a low-rank w0 or w2


@dataclass(frozen=True, kw_only=True)
class LaCTConfig(FlaConfig):
    """The fields of ``lact_swiglu`` that change what is computed."""

    num_attn_heads: int = 32
    num_lact_heads: int = 4
    inter_multi: float = 1
    window_size: int | None = 2048
    lact_chunk_size: int = 2048
    rope_theta: float = 10000.0
    qkv_bias: bool = False
    attn_qk_norm: bool = False
    qkv_silu: bool = True
    no_v_silu: bool = False
    lr_dim: int = 1
    use_muon: bool = False
    use_momentum: bool = True
    learnable_ttt_scale: bool = True
    ttt_prenorm: bool = False
    ttt_nope: bool = False
    w0_w2_low_rank: int = -1
    lr_parameterization: str = "mamba"
    ttt_loss_type: str = "dot_product"

    def fixed(self) -> dict[str, tuple[Any, ...]]:
        """See ``FlaConfig.fixed``."""
        per_channel = (self.head_size,) if self.hidden_units == self.head_size else ()
        return super().fixed() | {
            "lr_parameterization": ("mamba",),
            "ttt_loss_type": ("dot_product",),
            "lr_dim": (1, *per_channel),
        }

    @property
    def head_size(self) -> int:
        """Channels of a memory's keys and values."""
        return self.hidden_size // self.num_lact_heads

    @property
    def hidden_units(self) -> int:
        """Hidden units of a memory."""
        return int(self.head_size * self.inter_multi)

    @property
    def rule(self) -> Rule:
        """How a chunk is written."""
        return Rule(
            chunk=self.lact_chunk_size,
            muon=self.use_muon,
            prenorm=self.ttt_prenorm,
            momentum=self.use_momentum,
        )


class LowRankWeight(nn.Module):
    """The parameters of an initial weight W = left right + identity / 2, head by head."""

    def __init__(self, heads: int, out: int, width: int, rank: int) -> None:
        super().__init__()
        self.w_left = nn.Parameter(torch.empty(heads, out, rank))
        self.w_right = nn.Parameter(torch.empty(heads, rank, width))


class LaCTAttention(nn.Module):
    """The parameters of one layer's window attention and memory, under the authors' names."""

    def __init__(self, config: LaCTConfig) -> None:
        super().__init__()
        width, H, D = config.hidden_size, config.num_lact_heads, config.head_size
        units, rank = config.hidden_units, config.w0_w2_low_rank
        self.qkv = nn.Linear(width, 3 * width, bias=config.qkv_bias)
        if config.attn_qk_norm:
            self.q_norm = RMSNorm(width)
            self.k_norm = RMSNorm(width)
        self.o_proj = nn.Linear(width, width, bias=False)
        for name in ("w0", "w2"):
            full = nn.Parameter(torch.empty(H, units, D))
            setattr(self, name, LowRankWeight(H, units, D, rank) if rank > 0 else full)
        self.w1 = nn.Parameter(torch.empty(H, D, units))
        self.lr_proj = nn.Linear(width, 3 * config.lr_dim * H)
        self.qk_scale = nn.Parameter(torch.ones(width, 2))
        self.qk_offset = nn.Parameter(torch.zeros(width, 2))
        if config.learnable_ttt_scale:
            self.ttt_scale_proj = nn.Linear(width, H)
        self.ttt_norm = RMSNorm(D)
        if config.use_momentum:
            self.momentum_proj = nn.Sequential(nn.Linear(width, H), nn.Sigmoid())


class LaCT(FlaCausalLM):
    """LaCT with a state that goes on at any token: window, memory and the chunk not yet written.

    Fast weights of a request: w0, w1 and w2 of every layer and head, the initial values that the
    layer itself then rewrites chunk by chunk.
    """

    family = "lact"
    joins_segments = False
    attention = LaCTAttention
    stacks_states = False  # rows wait in different places of their chunks
    config: LaCTConfig

    def context(self, x: Tensor, position: Tensor) -> tuple[Tensor, Tensor]:
        """Rotary tables for the tokens of x [B, T, D]."""
        size = self.config.hidden_size // self.config.num_attn_heads
        return rotary_tables(position, x.shape[1], size, self.config.rope_theta, x.dtype)

    def _mix(
        self,
        attn: Any,
        h: Tensor,
        state: LaCTState | None,
        fast: FastWeights,
        name: str,
        context: tuple[Tensor, Tensor],
    ) -> tuple[Tensor, LaCTTrace]:
        B, T, _ = h.shape
        q, k, v = linear(h, attn.qkv, fast, f"{name}.qkv").chunk(3, dim=-1)
        if self.config.attn_qk_norm:
            q = rms_norm(q, attn.q_norm.weight, HEAD_NORM_EPS, fast, f"{name}.q_norm")
            k = rms_norm(k, attn.k_norm.weight, HEAD_NORM_EPS, fast, f"{name}.k_norm")
        fast_q, writes = self._queries_and_writes(attn, h, q, k, v, fast, name, context)
        q, k, v = (x.view(B, T, self.config.num_attn_heads, -1).transpose(1, 2) for x in (q, k, v))
        o, window = attend(
            rotate(q, *context),
            rotate(k, *context),
            v,
            state.window if state else None,
            window=self.config.window_size,
        )
        if state is None:
            memory = Memory.initial(self._initial_weights(attn, fast, name), self.config.rule)
            pending = Pending.nothing_before(writes)
        else:
            memory, pending = state.memory, state.pending.extend(writes)
        read, memories, starts = read_and_write(fast_q, memory, pending, self.config.rule)
        read = self._scale(attn, h, read, fast, name)
        y = linear(o.transpose(1, 2).reshape(B, T, -1) + read, attn.o_proj, fast, f"{name}.o_proj")
        trace = LaCTTrace(window, memories, pending, starts, self.config.rule, state is None)
        return y, trace

    def _queries_and_writes(
        self,
        attn: Any,
        h: Tensor,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        fast: FastWeights,
        name: str,
        context: tuple[Tensor, Tensor],
    ) -> tuple[Tensor, Writes]:
        """What the memory is asked, [B, H, T, D], and what it is to be told; q, k, v: [B, T, D]."""
        scale = own_parameter(attn.qk_scale, fast, f"{name}.qk_scale", q)  # [1|B, 1, D, 2]
        offset = own_parameter(attn.qk_offset, fast, f"{name}.qk_offset", q)
        q = q * scale[..., 0] + offset[..., 0]
        k = k * scale[..., 1] + offset[..., 1]
        if self.config.qkv_silu:
            q, k = F.silu(q), F.silu(k)
            v = v if self.config.no_v_silu else F.silu(v)
        q, k, v = (self._heads(x) for x in (q, k, v))
        q, k = _unit(q), _unit(k)
        if not self.config.ttt_nope:
            q, k = (self._rotate(x, context) for x in (q, k))
        wide = torch.promote_types(h.dtype, torch.float32)
        rates = self._heads(linear(h, attn.lr_proj, fast, f"{name}.lr_proj")).to(wide)
        rates = F.softplus(rates + BASE_RATE_BIAS)  # [B, H, T, 3 L]
        if self.config.use_momentum:
            momentum = linear(h, attn.momentum_proj[0], fast, f"{name}.momentum_proj.0")
            rates = torch.cat([rates, self._heads(momentum.sigmoid()).to(wide)], dim=-1)
        return q, Writes(k, v, rates)

    def _heads(self, x: Tensor) -> Tensor:
        """[B, T, H C] -> [B, H, T, C]."""
        return x.view(*x.shape[:2], self.config.num_lact_heads, -1).transpose(1, 2)

    def _rotate(self, x: Tensor, context: tuple[Tensor, Tensor]) -> Tensor:
        """Rotate x [B, H, T, D] as the attention's heads, several of which make one of H."""
        B, H, T, D = x.shape
        flat = x.transpose(1, 2).reshape(B, T, self.config.num_attn_heads, -1).transpose(1, 2)
        return rotate(flat, *context).transpose(1, 2).reshape(B, T, H, D).transpose(1, 2)

    def _scale(self, attn: Any, h: Tensor, o: Tensor, fast: FastWeights, name: str) -> Tensor:
        """Norm and gate of the memory's output o [B, H, T, D]: [B, T, H D]."""
        o = o.transpose(1, 2)
        o = rms_norm(o, attn.ttt_norm.weight, HEAD_NORM_EPS, fast, f"{name}.ttt_norm")
        if self.config.learnable_ttt_scale:
            gate = linear(h, attn.ttt_scale_proj, fast, f"{name}.ttt_scale_proj")
            o = o * F.silu(gate)[..., None]
        return o.flatten(2)

    def _initial_weights(
        self, attn: Any, fast: FastWeights, name: str
    ) -> tuple[Tensor, Tensor, Tensor]:
        """w0, w1, w2 before the first chunk: [R, H, ...], or [1, H, ...] of the base model."""

        def of(which: str) -> Tensor:
            own, base = fast.get(f"{name}.{which}"), getattr(attn, which)
            if own is not None:
                return own
            if isinstance(base, nn.Parameter):
                return base[None]
            left, right = (fast.get(f"{name}.{which}.{side}") for side in ("w_left", "w_right"))
            left = base.w_left[None] if left is None else left
            right = base.w_right[None] if right is None else right
            w = left @ right
            return w + IDENTITY * torch.eye(*w.shape[-2:], dtype=w.dtype, device=w.device)

        return of("w0"), of("w1"), of("w2")

    def new_fast_weights(self, targets: str, rank: int, seed: int) -> FastWeights:
        """See ``CausalLM.new_fast_weights``."""
        if targets == "all":
            return self.full_copy()
        layers = [f"model.layers.{i}" for i in range(self.num_layers)]
        if targets == "low_rank":
            projections = ("attn.qkv", "attn.o_proj", *MLP_PROJECTIONS)
            names = [f"{layer}.{p}" for layer in layers for p in projections]
            return FastWeights(self.low_rank_weights(names, rank, seed))
        tensors = {}
        dtype = torch.promote_types(self.dtype, torch.float32)
        for layer in layers:
            attn = self.get_submodule(f"{layer}.attn")
            weights = self._initial_weights(attn, FastWeights(), f"{layer}.attn")
            for which, w in zip(("w0", "w1", "w2"), weights, strict=True):
                tensors[f"{layer}.attn.{which}"] = w.detach().to(dtype, copy=True)
        return FastWeights(tensors)


def _unit(x: Tensor) -> Tensor:
    """Vectors of norm 1, as lact_llm computes them."""
    norm: Tensor = x.norm(dim=-1, keepdim=True)
    return x / (norm + NORM_EPS)
