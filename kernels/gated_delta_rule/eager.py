"""The gated delta rule in chunks (arXiv 2412.06464, section 3.3).

It is ``delta_rule.eager`` with the score of two tokens of a chunk multiplied by the decay between
them. G[i] - G[j], the log of that decay, is never positive for j <= i, so its exponential cannot
overflow; exp(G[i]) exp(-G[j]) could.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from refine_server.kernels.delta_rule import CHUNK

CHANNEL_CHUNK = 16
"""Tokens of a chunk under a decay by channel, which needs [chunk, chunk, K] numbers."""


def gated_delta_rule(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, state: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Compute ``naive.gated_delta_rule`` in chunks; same arguments, same results."""
    B, H, T, K = q.shape
    V = v.shape[-1]
    dtype = torch.promote_types(q.dtype, torch.float32)
    qf, kf, vf, gf, bf = (x.to(dtype) for x in (q, k, v, g, beta))
    S = qf.new_zeros(B, H, K, V) if state is None else state.to(dtype).expand(B, H, K, V)
    if T == 1:
        return _step(qf, kf, vf, gf, bf, S, q.dtype)

    size = CHUNK if g.shape[-1] == 1 else CHANNEL_CHUNK
    C = min(size, T)
    N = -(-T // C)
    pad = N * C - T  # padded tokens have beta = 0 and g = 0: they change nothing
    qc, kc, vc, gc = (F.pad(x, (0, 0, 0, pad)).reshape(B * H, N, C, -1) for x in (qf, kf, vf, gf))
    bc = F.pad(bf, (0, pad)).reshape(B * H, N, C, 1)

    G = gc.cumsum(2)  # [BH, N, C, 1|K]
    since_start, until_end = G.exp(), (G[:, :, -1:] - G).exp()
    between = _between(G)  # [BH, N, C, C, 1|K]
    kb = kc * bc
    A = _scores(kb, kc, between).tril(-1)  # [BH, N, C, C]
    UW = torch.linalg.solve_triangular(
        A, torch.cat([vc * bc, kb * since_start], -1), upper=False, unitriangular=True
    )
    U, W = UW.split([V, K], dim=-1)  # [BH, N, C, V], [BH, N, C, K]
    k_end = kc * until_end
    decay = torch.diag_embed(G[:, :, -1].exp().expand(-1, -1, K))
    keep = (decay - k_end.mT @ W).unbind(1)  # N of [BH, K, K]
    write = (k_end.mT @ U).unbind(1)  # N of [BH, K, V]
    S = S.reshape(B * H, K, V)
    states = [S]
    for n in range(N):
        S = torch.baddbmm(write[n], keep[n], S)
        states.append(S)
    before = torch.stack(states[:-1], dim=1)  # [BH, N, K, V]

    o = (qc * since_start) @ before + _scores(qc, kc, between) @ (U - W @ before)
    o = o.reshape(B, H, N * C, V)[:, :, :T] * K**-0.5
    boundary = torch.stack([*states[: -1 : CHUNK // size], states[-1]], dim=1)
    return o.to(q.dtype), boundary.view(B, H, -1, K, V)


def _between(G: Tensor) -> Tensor:
    """Return the decay from token j to token i of a chunk, 0 for j > i: [..., C, C, 1|K]."""
    C = G.shape[2]
    future = torch.ones(C, C, dtype=torch.bool, device=G.device).triu(1)[..., None]
    return (G[:, :, :, None] - G[:, :, None]).masked_fill(future, -torch.inf).exp()


def _scores(a: Tensor, b: Tensor, between: Tensor) -> Tensor:
    """Return the decayed products of a[i] and b[j], j <= i: [..., C, C]."""
    if between.shape[-1] == 1:
        return (a @ b.mT) * between[..., 0]
    return torch.einsum("...id,...jd,...ijd->...ij", a, b, between)


def _step(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, S: Tensor, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Process one token: the decode path."""
    decayed = S * g.exp().mT  # [B, H, K, V]
    write = beta[..., None] * (v - k @ decayed)  # [B, H, 1, V]
    after = decayed + k.mT @ write
    o = (q @ after) * q.shape[-1] ** -0.5
    return o.to(dtype), torch.stack([S, after], dim=2)
