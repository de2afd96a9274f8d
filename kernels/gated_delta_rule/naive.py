"""The gated delta rule as its recurrence: the definition of the op."""

import torch
from torch import Tensor

from refine_server.kernels.delta_rule import CHUNK


def gated_delta_rule(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, state: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Let the memory decay, rewrite it and read it, token by token.

    S' = exp(g[t]) S[t-1];  S[t] = S' + k[t]^T beta[t] (v[t] - k[t] S');  o[t] = q[t] S[t] / sqrt(K)
    (arXiv 2412.06464, eq. 10). A token with beta = 0 and g = 0 leaves the memory as it is.

    Args:
        q, k: [B, H, T, K].
        v: [B, H, T, V].
        g: the log of the decay (<= 0), at least fp32: [B, H, T, 1], one for a head's whole memory,
            or [B, H, T, K], one for each row of it (Kimi delta attention, arXiv 2510.26692).
        beta: [B, H, T].
        state: [B, H, K, V], the memory before the first token; None: zeros.

    Returns:
        o [B, H, T, V] in q's dtype, and the memory before tokens 0, CHUNK, 2 CHUNK, … and after
        the last one: [B, H, ceil(T / CHUNK) + 1, K, V], at least fp32.
    """
    B, H, T, K = q.shape
    dtype = torch.promote_types(q.dtype, torch.float32)
    qf, kf, vf, gf, bf = (x.to(dtype) for x in (q, k, v, g, beta))
    S = qf.new_zeros(B, H, K, v.shape[-1]) if state is None else state.to(dtype)
    outputs, states = [], []
    for t in range(T):
        if t % CHUNK == 0:
            states.append(S)
        S = S * gf[:, :, t, :, None].exp()
        read = (kf[:, :, t, None] @ S).squeeze(-2)  # [B, H, V]
        write = bf[:, :, t, None] * (vf[:, :, t] - read)  # [B, H, V]
        S = S + kf[:, :, t, :, None] * write[:, :, None]
        outputs.append((qf[:, :, t, None] @ S).squeeze(-2))
    states.append(S)
    o = torch.stack(outputs, dim=2) * K**-0.5
    return o.to(q.dtype), torch.stack(states, dim=2)
