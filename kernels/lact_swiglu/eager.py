"""LaCT's memory in batched products, for all rows, heads and tokens of a chunk at once."""

import torch
import torch.nn.functional as F
from torch import Tensor


def lact_apply(q: Tensor, w0: Tensor, w1: Tensor, w2: Tensor) -> Tensor:
    """Compute ``naive.lact_apply`` in batched products; same arguments, same results."""
    B, H, T, D = q.shape
    M = w0.shape[0]
    w0, w1, w2 = (w.to(q.dtype) for w in (w0, w1, w2))
    if M == B:
        return (F.silu(q @ w0.mT) * (q @ w2.mT)) @ w1.mT
    x = q.reshape(M, B // M, H, T, D).transpose(1, 2).reshape(M, H, B // M * T, D)
    o = (F.silu(x @ w0.mT) * (x @ w2.mT)) @ w1.mT
    return o.view(M, H, B // M, T, D).transpose(1, 2).reshape(B, H, T, D)


def lact_gradient(
    k: Tensor,
    v: Tensor,
    lr0: Tensor,
    lr1: Tensor,
    lr2: Tensor,
    w0: Tensor,
    w1: Tensor,
    w2: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute ``naive.lact_gradient`` in batched products; same arguments, same results."""
    dtype = torch.promote_types(k.dtype, torch.float32)
    w0, w1, w2 = (w.to(k.dtype) for w in (w0, w1, w2))
    gate, up = k @ w0.mT, k @ w2.mT  # [B, H, T, F]
    d_hidden = v @ w1  # [B, H, T, F]
    sigmoid = gate.sigmoid()
    active = F.silu(gate)  # as in lact_llm; gate * sigmoid rounds differently
    d_gate = d_hidden * up * sigmoid * (1 + gate * (1 - sigmoid))
    dw0 = d_gate.mT @ (k * lr0).to(k.dtype)
    dw1 = v.mT @ (active * up * lr1).to(k.dtype)
    dw2 = (d_hidden * active).mT @ (k * lr2).to(k.dtype)
    return dw0.to(dtype), dw1.to(dtype), dw2.to(dtype)
