"""Layers whose weights a request may own: each looks into the fast weights before the module."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from refine_server.kernels import dispatch
from refine_server.ttt.fast_weights import FastWeights


def per_row(tensor: Tensor, rows: int) -> Tensor:
    """Requests' tensors [R, ...] spread over their rows: [rows, ...]."""
    copies = rows // tensor.shape[0]
    return tensor if copies == 1 else tensor.repeat_interleave(copies, 0)


def own_parameter(base: Tensor, fast: FastWeights, name: str, x: Tensor) -> Tensor:
    """A parameter of any shape [...] for rows x [N, T, ...]: [1, 1, ...] or, own, [N, 1, ...]."""
    own = fast.get(name)
    if own is None:
        return base[None, None]
    return per_row(own, x.shape[0])[:, None].to(base.dtype)


def linear(x: Tensor, module: nn.Linear, fast: FastWeights, name: str) -> Tensor:
    """Projection of x [N, T, in] to [N, T, out], by the request's weight or delta if it has one."""
    a = fast.get(f"{name}.lora_a")
    if a is not None:
        b = fast[f"{name}.lora_b"]
        return dispatch.batched_low_rank(
            x, module.weight, a.to(x.dtype), b.to(x.dtype), module.bias
        )
    own = fast.get(f"{name}.weight")
    if own is None:
        return F.linear(x, module.weight, module.bias)
    R = own.shape[0]
    y = (x.reshape(R, -1, x.shape[-1]) @ own.to(x.dtype).mT).view(*x.shape[:-1], -1)
    return y if module.bias is None else y + own_parameter(module.bias, fast, f"{name}.bias", x)


def joint_linear(
    x: Tensor,
    modules: Sequence[nn.Linear],
    joined: Tensor | None,
    fast: FastWeights,
    names: Sequence[str],
) -> Sequence[Tensor]:
    """Several projections of one x [N, T, in]: one product with ``joined`` where nobody owns any.

    joined: [sum of out, in], the modules' weights one after the other (``layout.join``).
    """
    if joined is None or any(fast.changes(name) for name in names):
        return [linear(x, m, fast, name) for m, name in zip(modules, names, strict=True)]
    return torch.split(F.linear(x, joined), [m.out_features for m in modules], dim=-1)


def rms_norm(
    x: Tensor,
    weight: Tensor,
    eps: float,
    fast: FastWeights,
    name: str,
    *,
    zero_centred: bool = False,
) -> Tensor:
    """Root-mean-square norm over the last dimension of x [N, ..., D], computed in at least fp32.

    Zero-centred (Gemma, Qwen3-Next): the factor is 1 + weight.
    """
    own = fast.get(f"{name}.weight")
    if own is not None:
        shape = (x.shape[0], *(1,) * (x.ndim - 2), x.shape[-1])
        weight = per_row(own, x.shape[0]).view(shape).to(x.dtype)
    if zero_centred:
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        return dispatch.rms_norm(wide, 1 + weight.to(wide.dtype), eps).to(x.dtype)
    return dispatch.rms_norm(x, weight, eps)


def logits(hidden: Tensor, head: Tensor) -> Tensor:
    """Scores of hidden [N, ..., D] under one head [V, D], or the requests' own [R, V, D]."""
    if head.ndim == 2:
        return hidden @ head.to(hidden.dtype).T
    by_request = hidden.reshape(head.shape[0], -1, hidden.shape[-1])
    return (by_request @ head.to(hidden.dtype).mT).view(*hidden.shape[:-1], -1)


def embedding(ids: Tensor, module: nn.Embedding, fast: FastWeights, name: str) -> Tensor:
    """Rows of the embedding for ids [N, T]: [N, T, D], scaled if the module scales them (Gemma)."""
    own = fast.get(f"{name}.weight")
    if own is None:
        x = F.embedding(ids, module.weight)
    else:
        R = own.shape[0]
        shared = ids.view(R, -1)  # [R, N/R * T]
        rows = torch.arange(R, device=ids.device)[:, None]
        x = own.to(module.weight.dtype)[rows, shared].view(*ids.shape, -1)
    scale = getattr(module, "embed_scale", None)
    return x if scale is None else x * scale.to(x.dtype)
