"""Softmax attention of transformers' models: Llama's with its variants, and DeepSeek's latent."""

from typing import Any

import torch
from torch import Tensor

from refine_server.ttt.fast_weights import FastWeights
from refine_server.ttt.models.families.hf.architecture import HFRMSNorm
from refine_server.ttt.models.families.hf.base import QKV, HFCausalLM, Rotary
from refine_server.ttt.models.layers.attention import AttentionInputs, attend_rows, rotate
from refine_server.ttt.models.layers.functional import linear, packed_linear, per_row
from refine_server.ttt.models.state import KVRows, KVState, Trace

PROJECTIONS = (*QKV, "o_proj")


def attention(
    model: HFCausalLM,
    index: int,
    h: Tensor,
    state: KVState | KVRows | None,
    fast: FastWeights,
    rotary: Rotary,
    window: int | None,
) -> tuple[Tensor, Trace]:
    """Run grouped-query attention of layer ``index`` over h [B, T, D]."""
    attn, name = model.model.layers[index].self_attn, f"model.layers.{index}.self_attn"
    own = project(model, index, h, fast, rotary)
    o, trace = attend_rows(own.q, own.k, own.v, state, scale=own.scale, window=window)
    o = o.transpose(1, 2).flatten(2)  # [B, T, Hq V]
    if own.gate is not None:
        o = o * own.gate.sigmoid()
    return linear(o, attn.o_proj, fast, f"{name}.o_proj"), trace


def project(
    model: HFCausalLM, index: int, h: Tensor, fast: FastWeights, rotary: Rotary
) -> AttentionInputs:
    """Project h [B, T, D] to what grouped-query attention of layer ``index`` takes.

    Queries and keys may be normed, head by head or in their whole width, and the output may be
    gated by a second half of every query (Qwen3-Next).
    """
    B, T, _ = h.shape
    attn, name = model.model.layers[index].self_attn, f"model.layers.{index}.self_attn"
    modules = attn.q_proj, attn.k_proj, attn.v_proj
    names = f"{name}.q_proj", f"{name}.k_proj", f"{name}.v_proj"
    q, k, v = packed_linear(h, modules, model.packed[index].qkv, fast, names)
    gate = None
    if attn.q_proj.out_features == 2 * attn.o_proj.in_features:
        q, gate = q.view(B, T, -1, 2 * attn.head_dim).chunk(2, dim=-1)
        q, gate = q.reshape(B, T, -1), gate.reshape(B, T, -1)
    q = _heads(q, attn.head_dim, model.norms.get(f"{name}.q_norm"), fast)
    k = _heads(k, attn.head_dim, model.norms.get(f"{name}.k_norm"), fast)
    v = v.view(B, T, -1, attn.head_dim)
    q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)  # [B, Hq|H, T, D]
    v = v.contiguous()  # the trace keeps it, but not the queries and keys that lie beside it
    if rotary is not None:
        q, k = rotate(q, *rotary), rotate(k, *rotary)
    return AttentionInputs(q, k, v, attn.scaling, gate)


def _heads(x: Tensor, size: int, norm: HFRMSNorm | None, fast: FastWeights) -> Tensor:
    """Take heads apart, normed if the model norms them: [B, T, H D] -> [B, T, H, D]."""
    shape = (*x.shape[:2], -1, size)
    if norm is None:
        return x.view(shape)
    if norm.module.weight.shape[0] == x.shape[-1]:
        return norm(x, fast).view(shape)
    return norm(x.view(shape), fast)


def latent_attention(
    model: HFCausalLM,
    attn: Any,
    h: Tensor,
    state: KVState | KVRows | None,
    fast: FastWeights,
    name: str,
) -> tuple[Tensor, Trace]:
    """Run multi-head latent attention (arXiv 2405.04434) without positions over h [B, T, D].

    The up-projection of keys is moved to the queries and that of values behind the attention, so
    the state holds one latent a token instead of every head's key and value.
    """
    own = project_latent(model, attn, h, fast, name)
    o, trace = attend_rows(own.q, own.k, own.v, state, scale=own.scale)  # o: [B, H, T, rank]
    _, up_v = _up_projections(attn, fast, name, h)
    o = (o @ up_v.mT).transpose(1, 2).flatten(2)
    return linear(o, attn.o_proj, fast, f"{name}.o_proj"), trace


def project_latent(
    model: HFCausalLM, attn: Any, h: Tensor, fast: FastWeights, name: str
) -> AttentionInputs:
    """Project h [B, T, D] to what latent attention takes: all heads share a key and a value."""
    rank, rope = attn.kv_lora_rank, attn.qk_rope_head_dim
    if attn.q_lora_rank is None:
        q = linear(h, attn.q_proj, fast, f"{name}.q_proj")
    else:
        q = linear(h, attn.q_a_proj, fast, f"{name}.q_a_proj")
        q = model.norms[f"{name}.q_a_layernorm"](q, fast)
        q = linear(q, attn.q_b_proj, fast, f"{name}.q_b_proj")
    q = q.view(*h.shape[:2], attn.num_heads, -1).transpose(1, 2)
    q_nope, q_rope = q.split([attn.qk_nope_head_dim, rope], dim=-1)
    down = linear(h, attn.kv_a_proj_with_mqa, fast, f"{name}.kv_a_proj_with_mqa")
    latent, k_rope = down.split([rank, rope], dim=-1)
    latent = model.norms[f"{name}.kv_a_layernorm"](latent, fast)
    up_k, _ = _up_projections(attn, fast, name, h)
    query = torch.cat([q_nope @ up_k, q_rope], dim=-1)  # [B, H, T, rank + rope]
    key = torch.cat([latent, k_rope], dim=-1)[:, None]  # [B, 1, T, rank + rope]
    return AttentionInputs(query, key, latent[:, None], attn.scaling)


def _up_projections(attn: Any, fast: FastWeights, name: str, h: Tensor) -> tuple[Tensor, Tensor]:
    """Return the up-projections of keys and values: [1|B, H, nope | V, rank]."""
    own = fast.get(f"{name}.kv_b_proj.weight")
    up = attn.kv_b_proj.weight[None] if own is None else per_row(own, h.shape[0]).to(h.dtype)
    sizes = attn.qk_nope_head_dim, attn.v_head_dim
    up_k, up_v = up.view(-1, attn.num_heads, sum(sizes), attn.kv_lora_rank).split(sizes, dim=2)
    return up_k, up_v
