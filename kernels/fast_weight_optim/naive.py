"""AdamW and SGD request by request, tensor by tensor: the definition of the op."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Rule = Literal["adamw", "sgd"]

BETAS = (0.9, 0.999)
EPS = 1e-8
CLIP_EPS = 1e-6
"""Added to the norm that a gradient is clipped by, as in torch's clip_grad_norm_."""


@dataclass(frozen=True)
class OptimState:
    """What the optimiser remembers of R requests; updated in place.

    first: like the parameters: AdamW's mean of gradients, SGD's momentum. second: AdamW's mean of
    squares, empty for SGD. steps: [R], updates made so far, int32.
    """

    first: list[Tensor]
    second: list[Tensor]
    steps: Tensor

    @classmethod
    def new(cls, params: list[Tensor], rule: Rule) -> "OptimState":
        """Before the first step."""
        first, second = ([torch.zeros_like(p) for p in params] for _ in range(2))
        steps = torch.zeros(params[0].shape[0], dtype=torch.int32, device=params[0].device)
        return cls(first, second if rule == "adamw" else [], steps)


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
    """Clip every request's gradient by its norm and make one step, in place.

    AdamW (arXiv 1711.05101) has no weight decay here: a copy that starts at the base weights must
    not shrink. A request that is not active, or whose gradient is not finite, is left as it is.

    Args:
        params, grads: [R, ...] each; a request's gradient is all of its rows together.
        state: from ``OptimState.new``, or as the last step left it.
        rule: ``adamw`` or ``sgd``.
        learning_rate, max_norm: [R].
        active: [R], whether a request takes part.
        momentum: of SGD.

    Returns:
        [R] norms of the gradients before clipping, and [R] whether a step was made.
    """
    norms, stepped = [], []
    for r in range(params[0].shape[0]):
        norm = torch.stack([g[r].square().sum() for g in grads]).sum().sqrt()
        norms.append(norm)
        stepped.append(active[r] & norm.isfinite())
        if not stepped[-1]:
            continue
        clip = (max_norm[r] / (norm + CLIP_EPS)).clamp_max(1.0)
        state.steps[r] += 1
        step, rate = int(state.steps[r]), float(learning_rate[r])
        for i, param in enumerate(params):
            p, m, g = param[r], state.first[i][r], grads[i][r] * clip
            if rule == "sgd":
                m.mul_(momentum).add_(g)
                p.sub_(rate * m)
                continue
            v = state.second[i][r]
            m.mul_(BETAS[0]).add_((1 - BETAS[0]) * g)
            v.mul_(BETAS[1]).add_((1 - BETAS[1]) * g.square())
            mean, square = m / (1 - BETAS[0] ** step), v / (1 - BETAS[1] ** step)
            p.sub_(rate * mean / (square.sqrt() + EPS))
    return torch.stack(norms), torch.stack(stepped)
