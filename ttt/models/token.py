"""One token of one sequence through a Llama layer, in as few operations as it takes.

At one token a layer's products take half a millisecond, and every small operation around them some
microseconds. ``HFCausalLM.block`` computes the same for any layer and any input; this is for the
common one, where nothing is owned by a request and nothing is differentiated.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from refine_server.kernels.attention.torch import on_both
from refine_server.ttt.models.layout import Joined, Norm
from refine_server.ttt.models.state import KVState, KVTrace


@dataclass(frozen=True)
class TokenLayer:
    """What one token needs of a layer: weights as the products take them, and sizes.

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
        """x [1, 1, D] after a state of one row; cos and sin as ``rotate`` takes them."""
        shape, H, d = x.shape, self.kv_heads, self.head_dim
        x = x.view(1, -1)
        q_k, v = (self._normed(x, self.norm) @ self.qkv).split([(self.heads + H) * d, H * d], dim=1)
        q_k = q_k.view(-1, d)  # [Hq + H, d]
        turned = q_k.view(-1, 2, d // 2).flip(1).view(-1, d)
        q_k = torch.addcmul(q_k * cos.view(1, d), turned, sin.view(1, d))
        q, k = q_k.split([self.heads, H])
        k = torch.cat([state.k, k.view(1, H, 1, d)], dim=2)
        v = torch.cat([state.v, v.view(1, H, 1, d)], dim=2)
        prefix_k, prefix_v, seen = state.prefix_k, state.prefix_v, int(state.prefix_length)
        if seen < prefix_k.shape[2]:
            prefix_k, prefix_v = prefix_k[:, :, :seen], prefix_v[:, :, :seen]
        o = on_both(q.view(1, H, -1, d), k, v, prefix_k, prefix_v, self.scale)
        x = torch.addmm(x, o.view(1, -1), self.o)
        gate, up = (self._normed(x, self.mlp_norm) @ self.gate_up).chunk(2, dim=1)
        x = torch.addmm(x, self.activation(gate).mul_(up), self.down)
        return x.view(shape), KVTrace(k, v, state)

    def _normed(self, x: Tensor, weight: Tensor) -> Tensor:
        """The RMS norm of x [1, D]: its scale is one number, so it need not be a tensor."""
        length = float(torch.linalg.vector_norm(x))
        return (x * weight).mul_((length * length / x.shape[1] + self.eps) ** -0.5)


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
