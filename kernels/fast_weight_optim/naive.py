"""AdamW request by request, tensor by tensor: the definition of the op."""

import torch
from torch import Tensor

from refine_server.kernels.fast_weight_optim import BETAS, CLIP_EPS, EPS, OptimState


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
    """Clip every request's gradient by its norm and make one step, in place.

    AdamW (arXiv 1711.05101): the weight decay is apart from the gradient and its means. A request
    that is not active, or whose gradient is not finite, keeps its parameters and its state.

    Args:
        params: [R, ...] each, the parameters of R requests.
        grads: [R, ...] each, their gradients; a request's norm is taken over all of its rows.
        state: from ``OptimState.new``, or as the last step left it.
        learning_rate: [R].
        max_norm: [R], the norm that a request's gradient is scaled down to when it is larger.
        weight_decay: [R], the share of the learning rate that a parameter shrinks by in a step.
        active: [R] bool, whether a request takes part.

    Returns:
        [R] norms of the gradients before clipping, and [R] bool, whether a step was made.
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
        step, rate, decay = int(state.steps[r]), float(learning_rate[r]), float(weight_decay[r])
        for i, param in enumerate(params):
            p, g = param[r], grads[i][r] * clip
            m, v = state.first[i][r], state.second[i][r]
            m.mul_(BETAS[0]).add_((1 - BETAS[0]) * g)
            v.mul_(BETAS[1]).add_((1 - BETAS[1]) * g.square())
            mean, square = m / (1 - BETAS[0] ** step), v / (1 - BETAS[1] ** step)
            p.mul_(1 - rate * decay).sub_(rate * mean / (square.sqrt() + EPS))
    return torch.stack(norms), torch.stack(stepped)
