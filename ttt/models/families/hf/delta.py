"""Delta-rule layers of transformers' hybrid models: four sets of names for one computation.

Each makes queries, keys and values that go through one short convolution, a write strength, a
decay and an output gate. What differs is how they are projected.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from refine_server.ttt.fast_weights import FastWeights
from refine_server.ttt.models.layers.delta_rule import convolve, delta_rule, log_decay
from refine_server.ttt.models.layers.functional import linear, linears, own_parameter, rms_norm
from refine_server.ttt.models.layers.low_rank import add_low_rank
from refine_server.ttt.models.state import DeltaState, DeltaTrace

QKVO = ("q_proj", "k_proj", "v_proj", "o_proj")


@dataclass(frozen=True, slots=True)
class Inputs:
    """What the tokens of a delta-rule layer are projected to."""

    qkv: Tensor
    """[B, T, C], before the convolution."""
    beta: Tensor
    """[B, T, H], write strengths."""
    g: Tensor
    """[B, T, H, 1 | K], logarithm of the decay."""
    gate: Tensor
    """[B, T, H V], of the output."""


Project = Callable[[Any, Tensor, FastWeights, str], Inputs]
"""From a layer's module, h [B, T, D], the fast weights and the module's name."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DeltaKind:
    """One model's delta-rule layer."""

    module: str
    """Its name in a decoder layer."""
    norm: str
    """Name of the output's norm."""
    out: str
    """Name of the output's projection."""
    project: Project
    activation: Callable[[Tensor], Tensor]
    """Of the output gate."""
    projections: tuple[str, ...]
    """Projections of the layer that take LoRA."""
    memory_shape: Callable[[Any], tuple[int, int, int]]
    """From the layer's module to H, K and V: heads, and channels of a head's keys and values."""
    latent_attention: bool = False
    """Whether the model's attention layers have multi-head latent attention."""


def delta_attention(
    kind: DeltaKind, attn: Any, h: Tensor, state: DeltaState | None, fast: FastWeights, name: str
) -> tuple[Tensor, DeltaTrace]:
    """Run a delta-rule layer over h [B, T, D]."""
    B, T, _ = h.shape
    H, K, V = kind.memory_shape(attn)
    inputs = kind.project(attn, h, fast, name)
    qkv, conv_inputs = convolve(inputs.qkv, [(f"{name}.conv1d", attn.conv1d)], state, fast)
    keys = (qkv.shape[-1] - H * V) // 2
    q, k, v = qkv.split([keys, keys, H * V], dim=-1)
    q, k, v = q.view(B, T, -1, K), k.view(B, T, -1, K), v.view(B, T, H, V)
    initial = fast.get(f"{name}.state")
    o, trace = delta_rule(q, k, v, inputs.beta, inputs.g, state, initial, conv_inputs)
    norm = getattr(attn, kind.norm)
    o = rms_norm(o, norm.weight, norm.variance_epsilon, fast, f"{name}.{kind.norm}")
    o = o * kind.activation(inputs.gate.view(o.shape))
    y = linear(o.reshape(B, T, -1), getattr(attn, kind.out), fast, f"{name}.{kind.out}")
    return y, trace


def _qwen3_next(attn: Any, h: Tensor, fast: FastWeights, name: str) -> Inputs:
    """Take apart what lies together by key head: query, key, values and gates; betas and decays."""
    heads, shared = attn.num_k_heads, attn.num_v_heads // attn.num_k_heads
    K, V = attn.head_k_dim, attn.head_v_dim * shared
    qkvz = linear(h, attn.in_proj_qkvz, fast, f"{name}.in_proj_qkvz")
    ba = linear(h, attn.in_proj_ba, fast, f"{name}.in_proj_ba")
    parts = qkvz.view(*h.shape[:2], heads, -1).split([K, K, V, V], dim=-1)
    q, k, v, z = (x.flatten(2) for x in parts)
    b, a = ba.view(*h.shape[:2], heads, -1).chunk(2, dim=-1)
    qkv = torch.cat([add_low_rank(q, h, fast, f"{name}.query"), k, v], dim=-1)
    g = log_decay(a.flatten(2), attn, fast, name)
    return Inputs(qkv, b.flatten(2).sigmoid(), g, z)


def _qwen3_5(attn: Any, h: Tensor, fast: FastWeights, name: str) -> Inputs:
    parts = ("in_proj_qkv", "in_proj_z", "in_proj_b", "in_proj_a")
    qkv, z, b, a = linears(h, attn, parts, fast, name)
    q, kv = qkv.split([attn.key_dim, qkv.shape[-1] - attn.key_dim], dim=-1)
    qkv = torch.cat([add_low_rank(q, h, fast, f"{name}.query"), kv], dim=-1)
    return Inputs(qkv, b.sigmoid(), log_decay(a, attn, fast, name), z)


def _olmo_hybrid(attn: Any, h: Tensor, fast: FastWeights, name: str) -> Inputs:
    parts = ("q_proj", "k_proj", "v_proj", "a_proj", "b_proj", "g_proj")
    q, k, v, a, b, gate = linears(h, attn, parts, fast, name)
    beta = b.sigmoid() * (2 if attn.allow_neg_eigval else 1)
    return Inputs(torch.cat([q, k, v], dim=-1), beta, log_decay(a, attn, fast, name), gate)


def _kimi_linear(attn: Any, h: Tensor, fast: FastWeights, name: str) -> Inputs:
    parts = ("q_proj", "k_proj", "v_proj", "b_proj", "g_a_proj")
    q, k, v, b, low = linears(h, attn, parts, fast, name)
    gate = linear(low, attn.g_b_proj, fast, f"{name}.g_b_proj")
    forget, under = attn.forget_gate, f"{name}.forget_gate"
    f = linear(h, forget.f_a_proj, fast, f"{under}.f_a_proj")
    f = linear(f, forget.f_b_proj, fast, f"{under}.f_b_proj")
    wide = torch.promote_types(h.dtype, torch.float32)
    bias = own_parameter(forget.dt_bias, fast, f"{under}.dt_bias", f).to(wide)
    rate = own_parameter(forget.A_log, fast, f"{under}.A_log", f).to(wide).exp()
    f = F.softplus(f.to(wide) + bias).view(*h.shape[:2], attn.num_heads, -1)
    g = -rate.view(-1, 1, attn.num_heads, 1) * f  # [B, T, H, K]
    return Inputs(torch.cat([q, k, v], dim=-1), b.sigmoid(), g, gate)


def query_delta(attn: Any) -> tuple[str, tuple[int, int]]:
    """Find what makes the queries of a layer: its name and widths, as LoRA needs them.

    Where one projection makes queries, keys and values, the delta is one of its own, ``query``.
    """
    for name in ("q_proj", "q_b_proj"):
        projection = getattr(attn, name, None)
        if projection is not None:
            return name, (projection.in_features, projection.out_features)
    return "query", (attn.hidden_size, attn.key_dim)


def _qwen_memory(attn: Any) -> tuple[int, int, int]:
    return attn.num_v_heads, attn.head_k_dim, attn.head_v_dim


def _kimi_memory(attn: Any) -> tuple[int, int, int]:
    return attn.num_heads, attn.head_dim, attn.head_dim


QWEN3_NEXT = DeltaKind(
    module="linear_attn",
    norm="norm",
    out="out_proj",
    project=_qwen3_next,
    activation=F.silu,
    projections=("in_proj_qkvz", "out_proj"),
    memory_shape=_qwen_memory,
)
QWEN3_5 = DeltaKind(
    module="linear_attn",
    norm="norm",
    out="out_proj",
    project=_qwen3_5,
    activation=F.silu,
    projections=("in_proj_qkv", "in_proj_z", "out_proj"),
    memory_shape=_qwen_memory,
)
OLMO_HYBRID = DeltaKind(
    module="linear_attn",
    norm="o_norm",
    out="o_proj",
    project=_olmo_hybrid,
    activation=F.silu,
    projections=QKVO,
    memory_shape=_qwen_memory,
)
KIMI_LINEAR = DeltaKind(
    module="self_attn",
    norm="o_norm",
    out="o_proj",
    project=_kimi_linear,
    activation=torch.sigmoid,
    projections=QKVO,
    memory_shape=_kimi_memory,
    latent_attention=True,
)
