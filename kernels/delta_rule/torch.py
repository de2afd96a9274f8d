"""The delta rule in chunks (arXiv 2406.06484, section 3.2): matrix products instead of a loop.

Within a chunk the recurrence is a unit-triangular system, solved for all chunks at once. Across
chunks the memory follows S' = (I - K^T W) S + K^T U, one product a chunk; reads come after, in one
batch.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from refine_server.kernels.delta_rule import CHUNK


def delta_rule(
    q: Tensor, k: Tensor, v: Tensor, beta: Tensor, state: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """See ``naive.delta_rule``: same arguments, same results."""
    B, H, T, K = q.shape
    V = v.shape[-1]
    dtype = torch.promote_types(q.dtype, torch.float32)
    qf, kf, vf, bf = (x.to(dtype) for x in (q, k, v, beta))
    S = qf.new_zeros(B, H, K, V) if state is None else state.to(dtype).expand(B, H, K, V)
    if T == 1:
        return _step(qf, kf, vf, bf, S, q.dtype)

    C = min(CHUNK, T)
    N = -(-T // C)
    pad = N * C - T  # padded tokens have beta = 0 and write nothing
    qc, kc, vc = (F.pad(x, (0, 0, 0, pad)).reshape(B * H, N, C, -1) for x in (qf, kf, vf))
    bc = F.pad(bf, (0, pad)).reshape(B * H, N, C, 1)

    kb = kc * bc
    A = (kb @ kc.mT).tril(-1)  # [BH, N, C, C]
    UW = torch.linalg.solve_triangular(
        A, torch.cat([vc * bc, kb], -1), upper=False, unitriangular=True
    )
    U, W = UW.split([V, K], dim=-1)  # [BH, N, C, V], [BH, N, C, K]
    eye = torch.eye(K, dtype=dtype, device=q.device)
    keep = (eye - kc.mT @ W).unbind(1)  # N of [BH, K, K]
    write = (kc.mT @ U).unbind(1)  # N of [BH, K, V]
    S = S.reshape(B * H, K, V)
    states = [S]
    for n in range(N):
        S = torch.baddbmm(write[n], keep[n], S)
        states.append(S)
    boundary = torch.stack(states, dim=1)  # [BH, N + 1, K, V]

    before = boundary[:, :-1]
    o = qc @ before + (qc @ kc.mT).tril() @ (U - W @ before)
    o = o.reshape(B, H, N * C, V)[:, :, :T] * K**-0.5
    return o.to(q.dtype), boundary.view(B, H, N + 1, K, V)


def _step(
    q: Tensor, k: Tensor, v: Tensor, beta: Tensor, S: Tensor, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """One token: the decode path."""
    write = beta[..., None] * (v - k @ S)  # [B, H, 1, V]
    after = S + k.mT @ write  # [B, H, K, V]
    o = (q @ after) * q.shape[-1] ** -0.5
    return o.to(dtype), torch.stack([S, after], dim=2)
