"""A token or a few of one sequence through a Llama layer, in as few operations as it takes.

At one token a layer's products take half a millisecond, and every small operation around them some
microseconds. ``HFCausalLM.block`` computes the same for any layer and any input; this is for the
common one, where nothing is owned by a request and nothing is differentiated.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from refine_server.kernels import dispatch
from refine_server.ttt.models.layers.packing import Joined, Norm
from refine_server.ttt.models.state import KVState, KVTrace

FEW = 8
"""Tokens at once: what is drafted is fewer, and masks are kept for as many."""


@dataclass(frozen=True)
class TokenLayer:
    """What a token needs of a layer: weights as the products take them, and sizes.

    qkv: [D, (Hq + 2 H) d]; o: [Hq d, D]; gate_up: [D, 2 F]; down: [F, D].
    """

    norm: Tensor
    qkv: Tensor
    o: Tensor
    mlp_norm: Tensor
    gate_up: Tensor
    down: Tensor
    eps: float
    heads: int
    kv_heads: int
    head_dim: int
    scale: float
    activation: Callable[[Tensor], Tensor]

    def read(self, x: Tensor, state: KVState, cos: Tensor, sin: Tensor) -> tuple[Tensor, KVTrace]:
        """x [1, T, D], T <= ``FEW``, after a state of one row; cos and sin as of ``rotate``."""
        (_, T, _), H, d = x.shape, self.kv_heads, self.head_dim
        x = x.view(T, -1)
        h = dispatch.rms_norm(x, self.norm, self.eps)
        heads = (h @ self.qkv).view(T, -1, d).transpose(0, 1)
        q_k, v = heads.split([self.heads + H, H])  # [Hq + H, T, d] and [H, T, d]
        q_k = torch.addcmul(q_k * cos.view(T, d), q_k.roll(d // 2, -1), sin.view(T, d))
        q, k = q_k.split([self.heads, H])
        k = torch.cat([state.k, k.unsqueeze(0)], dim=2)
        v = torch.cat([state.v, v.unsqueeze(0)], dim=2)
        q = q.reshape(1, H, -1, d)  # [1, H, Hq / H T, d]
        o = self._attended(q, k, v, state, T).view(-1, T, d)
        x = torch.addmm(x, o.transpose(0, 1).reshape(T, -1), self.o)
        h = dispatch.rms_norm(x, self.mlp_norm, self.eps)
        gate, up = (h @ self.gate_up).chunk(2, dim=1)
        x = torch.addmm(x, self.activation(gate).mul_(up), self.down)
        return x.unsqueeze(0), KVTrace(k, v, state)

    def _attended(self, q: Tensor, k: Tensor, v: Tensor, state: KVState, T: int) -> Tensor:
        """Attention of the last T tokens of k and v [1, H, S, d] to these and to the prefix."""
        prefix_k, prefix_v, seen = state.prefix_k, state.prefix_v, int(state.prefix_length)
        if seen < prefix_k.shape[2]:
            prefix_k, prefix_v = prefix_k[:, :, :seen], prefix_v[:, :, :seen]
        mask = None
        if T > 1:
            mask = _tail_mask(T, k.shape[2], self.heads // self.kv_heads, q.dtype, q.device)
        return dispatch.cascade_attention(q, k, v, prefix_k, prefix_v, self.scale, tail_mask=mask)


@lru_cache(maxsize=4)
def _tail_mask(T: int, S: int, groups: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """What is added to the scores of the last T of S tokens, [groups T, S]; all layers need it."""
    unseen = torch.ones(T, S, dtype=torch.bool, device=device).triu_(S - T + 1)
    return (
        torch.zeros(T, S, dtype=dtype, device=device)
        .masked_fill_(unseen, -torch.inf)
        .repeat(groups, 1)
    )


def token_layer(layer: Any, first: Norm, second: Norm, joined: Joined) -> TokenLayer | None:
    """The layer as ``TokenLayer``, if that is what it computes.

    first, second: its norms, before the attention and the MLP; it must have no others.
    """
    if joined.qkv is None or joined.gate_up is None:
        return None
    attn, mlp = layer.self_attn, layer.mlp
    plain = all(type(m) is nn.Linear and m.bias is None for m in (attn.o_proj, mlp.down_proj))
    ungated = attn.q_proj.out_features == attn.o_proj.in_features
    if not plain or not ungated or first.zero_centred or second.zero_centred:
        return None
    if hasattr(attn, "q_norm") or hasattr(attn, "k_norm") or first.eps != second.eps:
        return None
    return TokenLayer(
        norm=first.module.weight.detach(),
        qkv=joined.qkv.T,
        o=attn.o_proj.weight.detach().T,
        mlp_norm=second.module.weight.detach(),
        gate_up=joined.gate_up.T,
        down=mlp.down_proj.weight.detach().T,
        eps=first.eps,
        heads=attn.q_proj.out_features // attn.head_dim,
        kv_heads=attn.k_proj.out_features // attn.head_dim,
        head_dim=attn.head_dim,
        scale=attn.scaling,
        activation=mlp.act_fn,
    )
