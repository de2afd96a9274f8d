"""AdamW and SGD for all requests of a tensor at once."""

import torch
from torch import Tensor

from refine_server.kernels.fast_weight_optim.naive import BETAS, CLIP_EPS, EPS, OptimState, Rule


@torch.no_grad()
def fast_weight_optim(
    params: list[Tensor],
    grads: list[Tensor],
    state: OptimState,
    rule: Rule,
    learning_rate: Tensor,
    max_norm: Tensor,
    active: Tensor,
    momentum: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """See ``naive.fast_weight_optim``: same arguments, same results."""
    norm = torch.stack([g.flatten(1).square().sum(1) for g in grads]).sum(0).sqrt()  # [R]
    stepped = active & norm.isfinite()
    rows = stepped.nonzero()[:, 0]
    if rows.numel() == 0:
        return norm, stepped
    state.steps[rows] += 1
    steps = state.steps[rows].double()
    clip = (max_norm[rows] / (norm[rows] + CLIP_EPS)).clamp_max(1.0)
    rate = learning_rate[rows]
    if rule == "adamw":
        rate = rate / (1 - BETAS[0] ** steps)
    widen = (1 - BETAS[1] ** steps).rsqrt()
    everyone = rows.numel() == params[0].shape[0]
    for i, (param, grad) in enumerate(zip(params, grads, strict=True)):
        kept = [param, state.first[i], *state.second[i : i + 1]]
        own = kept if everyone else [t[rows] for t in kept]

        def spread(factor: Tensor, like: Tensor = param) -> Tensor:  # [rows] -> [rows, 1, ...]
            return factor.to(like.dtype).view(-1, *(1,) * (like.ndim - 1))

        g = (grad if everyone else grad[rows]) * spread(clip)
        if rule == "adamw":
            own[1].mul_(BETAS[0]).add_(g, alpha=1 - BETAS[0])
            own[2].mul_(BETAS[1]).addcmul_(g, g, value=1 - BETAS[1])
            spreads = own[2].sqrt().mul_(spread(widen)).add_(EPS)
            own[0].addcdiv_(own[1] * spread(-rate), spreads)
        else:
            own[1].mul_(momentum).add_(g)
            own[0].addcmul_(own[1], spread(-rate))
        if not everyone:
            for tensor, rows_of in zip(kept, own, strict=True):
                tensor[rows] = rows_of
    return norm, stepped
