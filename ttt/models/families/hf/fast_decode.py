"""The fast decode path of Llama-like models: a few tokens of one sequence in few operations.

At one token a layer's products take half a millisecond, and every small operation around them some
microseconds. ``HFCausalLM.block`` computes the same for any layer and any input; this is for what
``Overlay._can_decode_fast`` accepts: requests own LoRA at most. One ``FastLayer``
computes, from packed weights, every projection with its deltas if it has any:

    q, k, v = rms_norm(x) W_qkv                # one product
    q, k    = rotate(q), rotate(k)             # side by side
    o       = attention of q to the shared prefix and to the tail with k, v appended
    x       = x + o W_o
    x       = x + (act(gate) * up) W_down      # gate and up in one product
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from refine_server.kernels import dispatch
from refine_server.ttt.fast_weights import FastWeights
from refine_server.ttt.models.families.hf.architecture import HFRMSNorm
from refine_server.ttt.models.families.hf.base import QKV, PackedProjections
from refine_server.ttt.models.layers.packing import PackedLinear, plain_linear
from refine_server.ttt.models.state import KVState

MAX_FAST_TOKENS = 8
"""Tokens at once: drafts are shorter, and masks are kept for as many."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FastLayer:
    """One layer with full attention: its weights as the products take them, and sizes."""

    norm: Tensor
    """[D], before the attention."""
    qkv: PackedLinear
    """D -> (Hq + 2 H) d."""
    o: PackedLinear
    """Hq d -> D."""
    mlp_norm: Tensor
    """[D], before the MLP."""
    gate_up: PackedLinear
    """D -> 2 F."""
    down: PackedLinear
    """F -> D."""
    eps: float
    heads: int
    """Hq, heads of queries."""
    kv_heads: int
    """H, heads of keys and values."""
    head_dim: int
    """d."""
    scale: float
    activation: Callable[[Tensor], Tensor]

    def decode(
        self, x: Tensor, state: KVState, fast: FastWeights, cos: Tensor, sin: Tensor
    ) -> tuple[Tensor, KVState]:
        """Run the layer over x [1, T, D], T <= ``MAX_FAST_TOKENS``, from a state of one row.

        fast: of one request, LoRA alone. cos, sin: [1, 1, T, d], as ``rotate`` takes
        them. Returns x and the state after it.
        """
        (_, T, _), H, d = x.shape, self.kv_heads, self.head_dim
        x = x.view(T, -1)
        h = dispatch.rms_norm(x, self.norm, self.eps)
        heads = self.qkv(h, fast).view(T, -1, d).transpose(0, 1)
        q_k, v = heads.split([self.heads + H, H])  # [Hq + H, T, d] and [H, T, d]
        q_k = torch.addcmul(q_k * cos.view(T, d), q_k.roll(d // 2, -1), sin.view(T, d))
        q, k = q_k.split([self.heads, H])
        k = torch.cat([state.k, k.unsqueeze(0)], dim=2)
        v = torch.cat([state.v, v.unsqueeze(0)], dim=2)
        q = q.reshape(1, H, -1, d)  # [1, H, Hq / H T, d]
        o = self._attend(q, k, v, state, T).view(-1, T, d)
        x = self.o(o.transpose(0, 1).reshape(T, -1), fast, onto=x)
        h = dispatch.rms_norm(x, self.mlp_norm, self.eps)
        gate, up = self.gate_up(h, fast).chunk(2, dim=1)
        x = self.down(self.activation(gate).mul_(up), fast, onto=x)
        after = KVState(
            prefix_k=state.prefix_k,
            prefix_v=state.prefix_v,
            prefix_length=state.prefix_length,
            k=k,
            v=v,
        )
        return x.unsqueeze(0), after

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, state: KVState, T: int) -> Tensor:
        """Attend from the last T tokens of k and v [1, H, S, d] to these and to the prefix."""
        prefix_k, prefix_v, seen = state.prefix_k, state.prefix_v, int(state.prefix_length)
        if seen < prefix_k.shape[2]:
            prefix_k, prefix_v = prefix_k[:, :, :seen], prefix_v[:, :, :seen]
        mask = None
        if T > 1:
            mask = _tail_mask(T, k.shape[2], self.heads // self.kv_heads, q.dtype, q.device)
        return dispatch.cascade_attention(q, k, v, prefix_k, prefix_v, self.scale, tail_mask=mask)


@lru_cache(maxsize=4)
def _tail_mask(T: int, S: int, groups: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Make what is added to the scores of the last T of S tokens, [groups T, S], for all layers."""
    unseen = torch.ones(T, S, dtype=torch.bool, device=device).triu_(S - T + 1)
    return (
        torch.zeros(T, S, dtype=dtype, device=device)
        .masked_fill_(unseen, -torch.inf)
        .repeat(groups, 1)
    )


def fast_layer(
    layer: Any,
    name: str,
    norm: HFRMSNorm | None,
    mlp_norm: HFRMSNorm | None,
    packed: PackedProjections,
) -> FastLayer | None:
    """Take over a decoder layer with full attention; None if it computes anything else.

    Args:
        layer: transformers' module. It must have rotary tables as wide as its heads.
        name: of the module.
        norm: of the attention's input.
        mlp_norm: of the MLP's input. The layer must have no other norms.
        packed: its packed weights.
    """
    if packed.qkv is None or packed.gate_up is None or norm is None or mlp_norm is None:
        return None
    attn = layer.self_attn
    o, down = plain_linear(attn.o_proj), plain_linear(layer.mlp.down_proj)
    gated = attn.q_proj.out_features != attn.o_proj.in_features
    if o is None or down is None or gated or norm.eps != mlp_norm.eps:
        return None
    if norm.zero_centred or mlp_norm.zero_centred:
        return None

    def linear(weight: Tensor, *names: str) -> PackedLinear:
        sizes = tuple(layer.get_submodule(part).out_features for part in names)
        return PackedLinear(weight.T, tuple(f"{name}.{part}" for part in names), sizes)

    return FastLayer(
        norm=norm.module.weight.detach(),
        qkv=linear(packed.qkv, *(f"self_attn.{part}" for part in QKV)),
        o=linear(o.weight.detach(), "self_attn.o_proj"),
        mlp_norm=mlp_norm.module.weight.detach(),
        gate_up=linear(packed.gate_up, "mlp.gate_proj", "mlp.up_proj"),
        down=linear(down.weight.detach(), "mlp.down_proj"),
        eps=norm.eps,
        heads=attn.q_proj.out_features // attn.head_dim,
        kv_heads=attn.k_proj.out_features // attn.head_dim,
        head_dim=attn.head_dim,
        scale=attn.scaling,
        activation=layer.mlp.act_fn,
    )
