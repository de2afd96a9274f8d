"""Layers whose weights a request may own: each looks into the fast weights before the module."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from refine_server.kernels import dispatch
from refine_server.ttt.fast_weights import FastWeights


def per_row(tensor: Tensor, rows: int) -> Tensor:
    """Spread the requests' tensors [R, ...] over their rows: [rows, ...]."""
    copies = rows // tensor.shape[0]
    return tensor if copies == 1 else tensor.repeat_interleave(copies, 0)


def own_parameter(base: Tensor, fast: FastWeights, name: str, x: Tensor) -> Tensor:
    """Return the parameter [...] that rows x [N, T, ...] see.

    [1, 1, ...], the base model's, or [N, 1, ...] where the requests own it.
    """
    own = fast.get(name)
    if own is None:
        return base[None, None]
    return per_row(own, x.shape[0])[:, None].to(base.dtype)


def linear(x: Tensor, module: nn.Linear, fast: FastWeights, name: str) -> Tensor:
    """Project x [N, T, in] to [N, T, out], under the requests' LoRA or own weight if any."""
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


def linears(
    x: Tensor, parent: nn.Module, parts: Sequence[str], fast: FastWeights, name: str
) -> list[Tensor]:
    """Project x [N, T, in] by several linear modules of ``parent``, whose name is ``name``."""
    return [linear(x, getattr(parent, part), fast, f"{name}.{part}") for part in parts]


def packed_linear(
    x: Tensor,
    modules: Sequence[nn.Linear],
    packed: Tensor | None,
    fast: FastWeights,
    names: Sequence[str],
) -> Sequence[Tensor]:
    """Project one x [N, T, in] several times, by one product where no request owns any of it.

    Args:
        x: the input.
        modules: the projections.
        packed: [sum of out, in], their weights side by side (``packing.pack``), or None.
        fast: the requests' fast weights.
        names: of the modules.

    Returns:
        One [N, T, out] a module.
    """
    if packed is None or any(fast.changes(name) for name in names):
        return [linear(x, m, fast, name) for m, name in zip(modules, names, strict=True)]
    return torch.split(F.linear(x, packed), [m.out_features for m in modules], dim=-1)


def rms_norm(
    x: Tensor,
    weight: Tensor,
    eps: float,
    fast: FastWeights,
    name: str,
    *,
    zero_centred: bool = False,
) -> Tensor:
    """Compute the RMS norm over the last dimension of x [N, ..., D], in at least fp32.

    Where it is zero-centred (Gemma, Qwen3-Next) the factor is 1 + weight.
    """
    own = fast.get(f"{name}.weight")
    if own is not None:
        shape = (x.shape[0], *(1,) * (x.ndim - 2), x.shape[-1])
        weight = per_row(own, x.shape[0]).view(shape).to(x.dtype)
    if zero_centred:
        weight = 1 + weight.to(torch.promote_types(x.dtype, torch.float32))
    return dispatch.rms_norm(x, weight, eps)


def logits(hidden: Tensor, head: Tensor) -> Tensor:
    """Score hidden [N, ..., D] under one head [V, D], or the requests' own heads [R, V, D]."""
    if head.ndim == 2:
        return hidden @ head.to(hidden.dtype).T
    by_request = hidden.reshape(head.shape[0], -1, hidden.shape[-1])
    return (by_request @ head.to(hidden.dtype).mT).view(*hidden.shape[:-1], -1)


def token_stats(
    hidden: Tensor, head: Tensor, targets: Tensor, temperature: float
) -> tuple[Tensor, Tensor]:
    """Compute log-probabilities of targets [N, T] and entropies after hidden [N, T, D].

    Both are [N, T]. head: [V, D], or the requests' own heads [R, V, D], N a multiple of R.
    """
    heads = [head] if head.ndim == 2 else list(head)
    rows = hidden.shape[0] // len(heads)
    results = [
        dispatch.token_stats(h.flatten(0, 1), w.to(h.dtype), t.flatten(), temperature)
        for h, w, t in zip(hidden.split(rows), heads, targets.split(rows), strict=True)
    ]
    log_prob = torch.cat([stats.log_prob for stats in results])
    entropy = torch.cat([stats.entropy for stats in results])
    return log_prob.view(targets.shape), entropy.view(targets.shape)


def embedding(ids: Tensor, module: nn.Embedding, fast: FastWeights, name: str) -> Tensor:
    """Embed ids [N, T] as [N, T, D], scaled if the module scales its rows (Gemma)."""
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
