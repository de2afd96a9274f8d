"""The delta rule as its recurrence: the definition of the op."""

import torch
from torch import Tensor

from refine_server.kernels.delta_rule import CHUNK


def delta_rule(
    q: Tensor, k: Tensor, v: Tensor, beta: Tensor, state: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Rewrite and read the memory token by token.

    S[t] = S[t-1] + k[t]^T beta[t] (v[t] - k[t] S[t-1]);  o[t] = q[t] S[t] / sqrt(K)
    (arXiv 2406.06484, eq. 5). A token with beta = 0 leaves the memory as it is.

    Args:
        q, k: [B, H, T, K].
        v: [B, H, T, V].
        beta: [B, H, T].
        state: [B, H, K, V], the memory before the first token; None: zeros.

    Returns:
        o [B, H, T, V] in q's dtype, and the memory before tokens 0, CHUNK, 2 CHUNK, … and after
        the last one: [B, H, ceil(T / CHUNK) + 1, K, V], at least fp32.
    """
    B, H, T, K = q.shape
    dtype = torch.promote_types(q.dtype, torch.float32)
    qf, kf, vf, bf = (x.to(dtype) for x in (q, k, v, beta))
    S = qf.new_zeros(B, H, K, v.shape[-1]) if state is None else state.to(dtype)
    outputs, states = [], []
    for t in range(T):
        if t % CHUNK == 0:
            states.append(S)
        read = (kf[:, :, t, None] @ S).squeeze(-2)  # [B, H, V]
        write = bf[:, :, t, None] * (vf[:, :, t] - read)  # [B, H, V]
        S = S + kf[:, :, t, :, None] * write[:, :, None]
        outputs.append((qf[:, :, t, None] @ S).squeeze(-2))
    states.append(S)
    o = torch.stack(outputs, dim=2) * K**-0.5
    return o.to(q.dtype), torch.stack(states, dim=2)


def delta_states(k: Tensor, v: Tensor, beta: Tensor, state: Tensor | None = None) -> Tensor:
    """Return only the states that ``delta_rule`` returns; nothing is read from the memory."""
    return delta_rule(k, k, v, beta, state)[1]
