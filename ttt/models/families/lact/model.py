"""LaCT (arXiv 2505.23884) in the layout of its authors' language model: same config, same names.

Sliding-window attention and, on the same queries, keys and values, a SwiGLU memory that every
chunk of tokens rewrites by one gradient step. The token mixer of one layer, over h [B, T, D]:

    q, k, v      = h W_qkv                                    # [B, T, D] each
    o            = window attention(rotate(q), rotate(k), v)
    q', k'       = unit(silu(scale * (q, k) + offset)), rotated; v' = silu(v)
    eta          = softplus(h W_lr + bias)                    # [B, T, 3 H], rates of w0, w1, w2
    r            = w1 (silu(w0 q') * w2 q')                   # read, [B, H, T, D / H]
    w            = rescale(w + update(grad of -<f(k'), v'>))  # written once a chunk, eta-weighted
    return       (o + rms_norm(r) * silu(h W_scale)) W_o

``swiglu_memory`` holds the memory and its update, ``state`` when which chunk is read and written.
"""

import math
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import override

from refine_server.kernels.lact_swiglu import NORM_EPS
from refine_server.ttt.fast_weights import FastWeights
from refine_server.ttt.models.families.fla.base import (
    MLP_PROJECTIONS,
    FlaCausalLM,
    FlaConfig,
    RMSNorm,
)
from refine_server.ttt.models.families.lact.state import (
    LaCTState,
    LaCTTrace,
    Pending,
    read_and_write,
)
from refine_server.ttt.models.families.lact.swiglu_memory import Memory, Rule, Writes
from refine_server.ttt.models.families.registry import register_native
from refine_server.ttt.models.layers.attention import attend, rotary_tables, rotate
from refine_server.ttt.models.layers.functional import linear, own_parameter, rms_norm
from refine_server.ttt.models.layers.low_rank import add_low_rank, new_low_rank_updates

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
    max_position_embeddings: int | None = None
    lr_parameterization: str = "mamba"
    ttt_loss_type: str = "dot_product"

    @override
    def fixed(self) -> dict[str, tuple[Any, ...]]:
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
    def context_length(self) -> int | None:
        """Longest sequence, in tokens, whose positions the model was trained for; None: any.

        Where the memory is read without positions, only those within the window are compared.
        """
        is_relative = self.ttt_nope and self.window_size is not None
        return None if is_relative else self.max_position_embeddings

    @property
    def rule(self) -> Rule:
        """How a chunk changes the memory."""
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

    def product(self, fast: FastWeights, name: str) -> Tensor:
        """Compute W, [R, H, out, in] or [1, H, out, in]; ``name`` is that of this module."""
        left, right = fast.get(f"{name}.w_left"), fast.get(f"{name}.w_right")
        left = self.w_left[None] if left is None else left
        right = self.w_right[None] if right is None else right
        w = left @ right
        return w + IDENTITY * torch.eye(*w.shape[-2:], dtype=w.dtype, device=w.device)


def _initial_weight(heads: int, out: int, width: int, rank: int) -> nn.Parameter | LowRankWeight:
    if rank > 0:
        return LowRankWeight(heads, out, width, rank)
    return nn.Parameter(torch.empty(heads, out, width))


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
        self.w0 = _initial_weight(H, units, D, rank)
        self.w2 = _initial_weight(H, units, D, rank)
        self.w1 = nn.Parameter(torch.empty(H, D, units))
        self.lr_proj = nn.Linear(width, 3 * config.lr_dim * H)
        self.qk_scale = nn.Parameter(torch.ones(width, 2))
        self.qk_offset = nn.Parameter(torch.zeros(width, 2))
        if config.learnable_ttt_scale:
            self.ttt_scale_proj = nn.Linear(width, H)
        self.ttt_norm = RMSNorm(D)
        if config.use_momentum:
            self.momentum_proj = nn.Sequential(nn.Linear(width, H), nn.Sigmoid())


@register_native("lact_swiglu", config=LaCTConfig)
class LaCT(FlaCausalLM):
    """LaCT with a state that continues at any token: window, memory and the unfinished chunk.

    Fast weights of a request: w0, w1 and w2 of every layer and head, the initial values that the
    layer itself then rewrites chunk by chunk. A delta of queries, ``attn.query``, is one of its
    own, because ``qkv`` also makes keys and values; the window and the memory both read with it.
    """

    family = "lact"
    attention = LaCTAttention
    state_classes = frozenset({LaCTState})
    config: LaCTConfig

    def __init__(self, config: LaCTConfig) -> None:
        super().__init__(config)
        self.context_length = config.context_length

    @override
    def context(self, x: Tensor, position: Tensor) -> tuple[Tensor, Tensor]:
        """Make rotary tables for the tokens of x [B, T, D]."""
        size = self.config.hidden_size // self.config.num_attn_heads
        return rotary_tables(position, x.shape[1], size, self.config.rope_theta, x.dtype)

    @override
    def _mix(
        self,
        attn: LaCTAttention,
        h: Tensor,
        state: LaCTState | None,
        fast: FastWeights,
        name: str,
        context: tuple[Tensor, Tensor],
    ) -> tuple[Tensor, LaCTTrace]:
        B, T, _ = h.shape
        q, k, v = linear(h, attn.qkv, fast, f"{name}.qkv").chunk(3, dim=-1)
        q = add_low_rank(q, h, fast, f"{name}.query")
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
            pending = Pending.first(writes)
        else:
            memory, pending = state.memory, state.pending.extend(writes)
        read, memories, starts = read_and_write(fast_q, memory, pending, self.config.rule)
        read = self._scale(attn, h, read, fast, name)
        y = linear(o.transpose(1, 2).reshape(B, T, -1) + read, attn.o_proj, fast, f"{name}.o_proj")
        trace = LaCTTrace(
            window=window,
            memories=memories,
            pending=pending,
            starts=starts,
            rule=self.config.rule,
            from_start=state is None,
        )
        return y, trace

    def _queries_and_writes(
        self,
        attn: LaCTAttention,
        h: Tensor,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        fast: FastWeights,
        name: str,
        context: tuple[Tensor, Tensor],
    ) -> tuple[Tensor, Writes]:
        """Make the memory's queries [B, H, T, D] and what is written, from q, k, v [B, T, D]."""
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
            projection = cast(nn.Linear, attn.momentum_proj[0])
            momentum = linear(h, projection, fast, f"{name}.momentum_proj.0")
            rates = torch.cat([rates, self._heads(momentum.sigmoid()).to(wide)], dim=-1)
        return q, Writes(k, v, rates)

    def _heads(self, x: Tensor) -> Tensor:
        """Take heads apart: [B, T, H C] -> [B, H, T, C]."""
        return x.view(*x.shape[:2], self.config.num_lact_heads, -1).transpose(1, 2)

    def _rotate(self, x: Tensor, context: tuple[Tensor, Tensor]) -> Tensor:
        """Rotate x [B, H, T, D] as the attention's heads, several of which make one of H."""
        B, H, T, D = x.shape
        flat = x.transpose(1, 2).reshape(B, T, self.config.num_attn_heads, -1).transpose(1, 2)
        return rotate(flat, *context).transpose(1, 2).reshape(B, T, H, D).transpose(1, 2)

    def _scale(
        self, attn: LaCTAttention, h: Tensor, o: Tensor, fast: FastWeights, name: str
    ) -> Tensor:
        """Norm and gate the memory's output o [B, H, T, D]: [B, T, H D]."""
        o = o.transpose(1, 2)
        o = rms_norm(o, attn.ttt_norm.weight, HEAD_NORM_EPS, fast, f"{name}.ttt_norm")
        if self.config.learnable_ttt_scale:
            gate = linear(h, attn.ttt_scale_proj, fast, f"{name}.ttt_scale_proj")
            o = o * F.silu(gate)[..., None]
        return o.flatten(2)

    def _initial_weights(
        self, attn: LaCTAttention, fast: FastWeights, name: str
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return w0, w1, w2 before the first chunk: [R, H, ...], [1, H, ...] if the model's own."""

        def of(which: str, base: nn.Parameter | LowRankWeight) -> Tensor:
            own = fast.get(f"{name}.{which}")
            if own is not None:
                return own
            if isinstance(base, LowRankWeight):
                return base.product(fast, f"{name}.{which}")
            return base[None]

        return of("w0", attn.w0), of("w1", attn.w1), of("w2", attn.w2)

    @override
    def new_fast_weights(self, targets: str, rank: int, seed: int) -> FastWeights:
        if targets == "all":
            return self.full_copy()
        layers = [f"model.layers.{i}" for i in range(self.num_layers)]
        if targets == "queries":
            width = self.config.hidden_size
            widths = {f"{layer}.attn.query": (width, width) for layer in layers}
            return FastWeights(new_low_rank_updates(widths, rank, seed, self.lm_head.weight))
        if targets == "low_rank":
            projections = ("attn.qkv", "attn.o_proj", *MLP_PROJECTIONS)
            names = [f"{layer}.{p}" for layer in layers for p in projections]
            return FastWeights(self.lora_weights(names, rank, seed))
        tensors = {}
        dtype = torch.promote_types(self.dtype, torch.float32)
        for layer in layers:
            attn: Any = self.get_submodule(f"{layer}.attn")
            weights = self._initial_weights(attn, FastWeights(), f"{layer}.attn")
            for which, w in zip(("w0", "w1", "w2"), weights, strict=True):
                tensors[f"{layer}.attn.{which}"] = w.detach().to(dtype, copy=True)
        return FastWeights(tensors)


def _unit(x: Tensor) -> Tensor:
    """Scale vectors to norm 1, as lact_llm does."""
    norm: Tensor = x.norm(dim=-1, keepdim=True)
    return x / (norm + NORM_EPS)
