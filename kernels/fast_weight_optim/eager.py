"""AdamW for all requests of a tensor at once, and for many tensors in one call.

The calls are those that torch's own AdamW is made of.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from refine_server.kernels.fast_weight_optim import BETAS, CLIP_EPS, EPS, OptimState

GROUP_BYTES = 16 * 2**20
"""Bytes of parameters stepped together; a few temporaries of that size are alive at once."""


@torch.no_grad()
def fast_weight_optim(
    params: list[Tensor],
    grads: list[Tensor],
    state: OptimState,
    learning_rate: Tensor,
    max_norm: Tensor,
    weight_decay: Tensor,
    active: Tensor,
) -> tuple[Tensor, Tensor]:
    """Compute ``naive.fast_weight_optim`` for all requests at once; same arguments and results."""
    norms = [torch.linalg.vector_norm(g, dim=tuple(range(1, g.ndim))) for g in grads]
    norm = torch.linalg.vector_norm(torch.stack(norms), dim=0)  # [R]
    stepped = active & norm.isfinite()
    rows = stepped.nonzero()[:, 0]
    if rows.numel() == 0:
        return norm, stepped
    state.steps[rows] += 1
    steps = state.steps[rows].double()
    clip = (max_norm[rows] / (norm[rows] + CLIP_EPS)).clamp_max(1.0)
    rate = learning_rate[rows] / (1 - BETAS[0] ** steps)
    widen = (1 - BETAS[1] ** steps).rsqrt()
    keep = None
    if weight_decay.any():
        keep = 1 - learning_rate[rows].double() * weight_decay[rows]
    everyone = rows.numel() == params[0].shape[0]
    for group in _groups(params):
        kept = [tensors[group] for tensors in (params, state.first, state.second)]
        own = kept if everyone else [[t[rows] for t in tensors] for tensors in kept]
        p, m, v = own
        g = grads[group] if everyone else [t[rows] for t in grads[group]]
        g = list(torch._foreach_mul(g, _spread(clip, g)))
        torch._foreach_mul_(m, BETAS[0])
        torch._foreach_add_(m, g, alpha=1 - BETAS[0])
        torch._foreach_mul_(v, BETAS[1])
        torch._foreach_addcmul_(v, g, g, 1 - BETAS[1])
        spreads = torch._foreach_sqrt(v)
        torch._foreach_mul_(spreads, _spread(widen, v))
        torch._foreach_add_(spreads, EPS)
        if keep is not None:
            torch._foreach_mul_(p, _spread(keep, p))
        torch._foreach_addcdiv_(p, torch._foreach_mul(m, _spread(-rate, m)), spreads)
        if not everyone:
            for tensors, rows_of in zip(kept, own, strict=True):
                for tensor, new in zip(tensors, rows_of, strict=True):
                    tensor[rows] = new
    return norm, stepped


def _groups(params: list[Tensor]) -> Iterator[slice]:
    """Yield runs of consecutive tensors of up to ``GROUP_BYTES``, or one larger tensor alone."""
    start, size = 0, 0
    for i, param in enumerate(params):
        if size and size + param.nbytes > GROUP_BYTES:
            yield slice(start, i)
            start, size = i, 0
        size += param.nbytes
    yield slice(start, len(params))


def _spread(factor: Tensor, like: list[Tensor]) -> list[Tensor]:
    """Return the requests' factors [R] as one [R, 1, ...] for every tensor of ``like``."""
    shapes = {(t.dtype, t.ndim) for t in like}
    made = {(d, n): factor.to(d).view(-1, *(1,) * (n - 1)) for d, n in shapes}
    return [made[t.dtype, t.ndim] for t in like]
