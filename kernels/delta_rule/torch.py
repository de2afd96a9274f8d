"""The delta rule in chunks (arXiv 2406.06484, section 3.2): matrix products instead of a loop.

With M = (I + tril(beta K K^T, -1))^-1, a chunk has U = M beta V and W = M beta K, and then

    D = U - W S        S' = S + K^T D        o = (Q S + tril(Q K^T) D) / sqrt(K)

All but S is made for all chunks at once; S' = (I - K^T W) S + K^T U is one product a chunk. The
backward pass is written out: autograd's own took twice the products, and a copy for each of them.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from refine_server.kernels.delta_rule import CHUNK


def delta_rule(
    q: Tensor, k: Tensor, v: Tensor, beta: Tensor, state: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """See ``naive.delta_rule``: same arguments, same results."""
    B, H, T, K = q.shape
    V = v.shape[-1]
    dtype = torch.promote_types(q.dtype, torch.float32)
    empty = q.new_zeros((), dtype=dtype)
    S = (empty if state is None else state.to(dtype)).expand(B, H, K, V)
    if T == 1:
        qf, kf, vf, bf = (x.to(dtype) for x in (q, k, v, beta))
        return _step(qf, kf, vf, bf, S, q.dtype)
    apply: Callable[..., tuple[Tensor, Tensor]] = _DeltaRule.apply
    return apply(q, k, v, beta, S)


class _DeltaRule(torch.autograd.Function):
    """Inside, all G = sequences · N chunks are one batch: q, k [G, C, K], v [G, C, V]."""

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, beta: Tensor, state: Tensor
    ) -> tuple[Tensor, Tensor]:
        sizes, dtype = q.shape[:3], q.dtype
        q, k, v, beta = (_chunks(x, state.dtype) for x in (q, k, v, beta[..., None]))
        bk = k * beta
        eye = torch.eye(k.shape[1], dtype=k.dtype, device=k.device).expand(k.shape[0], -1, -1)
        M = torch.linalg.solve_triangular(
            torch.bmm(bk, k.mT).tril_(-1), eye, upper=False, unitriangular=True
        )  # [G, C, C]
        U, W = M @ (v * beta), M @ bk  # [G, C, V], [G, C, K]
        states = _scan(_keep(k, W), k.mT @ U, state.flatten(0, 1))  # [sequences, N + 1, K, V]
        before = states[:, :-1].reshape(-1, *states.shape[2:])  # [G, K, V]
        D = torch.baddbmm(U, W, before, alpha=-1)
        P = torch.bmm(q, k.mT).tril_()
        o = torch.bmm(q, before).baddbmm_(P, D).mul_(q.shape[-1] ** -0.5)
        ctx.save_for_backward(q, k, v, beta, M, U, W, D, states)
        ctx.set_materialize_grads(False)
        ctx.sizes = sizes
        return _tokens(o, sizes).to(dtype), states.unflatten(0, sizes[:2])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_o: Tensor | None, grad_states: Tensor | None) -> Any:
        q, k, v, beta, M, U, W, D, states = ctx.saved_tensors
        before = states[:, :-1].reshape(-1, *states.shape[2:])
        grad_q, grad_k, grad_D, at_boundary = _backward_read(q, k, W, D, before, grad_o)
        after, grad_state = _scan_backward(_keep(k, W), at_boundary, grad_states, states)
        if grad_D is None:
            grad_D, grad_k = k @ after, D @ after.mT
        else:
            grad_D.baddbmm_(k, after)
            grad_k.baddbmm_(D, after.mT)
        grad_bv = M.mT @ grad_D
        grad_bk = M.mT @ torch.bmm(grad_D, before.mT).neg_()
        grad_A = torch.bmm(grad_bv, U.mT).baddbmm_(grad_bk, W.mT).tril_(-1)
        grad_bk.baddbmm_(grad_A, k, alpha=-1)
        grad_k.baddbmm_(grad_A.mT, k * beta, alpha=-1).addcmul_(grad_bk, beta)
        grad_beta = torch.linalg.vecdot(grad_bk, k) + torch.linalg.vecdot(grad_bv, v)
        return (
            None if grad_q is None else _tokens(grad_q, ctx.sizes),
            _tokens(grad_k, ctx.sizes),
            _tokens(grad_bv.mul_(beta), ctx.sizes),
            _tokens(grad_beta[..., None], ctx.sizes)[..., 0],
            grad_state.unflatten(0, ctx.sizes[:2]),
        )


def _chunks(x: Tensor, dtype: torch.dtype) -> Tensor:
    """[B, H, T, D] -> [B H N, C, D], filled up with zeros: beta = 0 writes nothing."""
    B, H, T, D = x.shape
    C = min(CHUNK, T)
    padded = torch.empty(B, H, -(-T // C) * C, D, dtype=dtype, device=x.device)
    padded[:, :, :T] = x
    padded[:, :, T:] = 0
    return padded.view(-1, C, D)


def _tokens(x: Tensor, sizes: torch.Size) -> Tensor:
    """Inverse of ``_chunks`` for sizes (B, H, T)."""
    B, H, T = sizes
    return x.view(B, H, -1, x.shape[-1])[:, :, :T]


def _keep(k: Tensor, W: Tensor) -> Tensor:
    """What a chunk leaves of the memory before it, I - K^T W: [G, K, K]."""
    keep = torch.bmm(k.mT, W).neg_()
    keep.diagonal(dim1=-2, dim2=-1).add_(1)
    return keep


def _scan(keep: Tensor, write: Tensor, state: Tensor) -> Tensor:
    """The memory before each chunk and after the last: [sequences, N + 1, K, V]."""
    rows = state.shape[0]
    keep, write = keep.unflatten(0, (rows, -1)), write.unflatten(0, (rows, -1))
    states = [state]
    for n in range(keep.shape[1]):
        states.append(torch.baddbmm(write[:, n], keep[:, n], states[-1]))
    return torch.stack(states, dim=1)


def _backward_read(
    q: Tensor, k: Tensor, W: Tensor, D: Tensor, before: Tensor, grad_o: Tensor | None
) -> tuple[Any, Any, Any, Any]:
    """What reads send back: to q, k and D, and to the memory before each chunk; None: nothing."""
    if grad_o is None:
        return None, None, None, None
    grad_o = _chunks(grad_o, q.dtype).mul_(q.shape[-1] ** -0.5)
    P = torch.bmm(q, k.mT).tril_()
    grad_P = torch.bmm(grad_o, D.mT).tril_()
    grad_q = torch.bmm(grad_o, before.mT).baddbmm_(grad_P, k)
    at_boundary = torch.baddbmm(q, P, W, alpha=-1).mT @ grad_o
    return grad_q, grad_P.mT @ q, P.mT @ grad_o, at_boundary


def _scan_backward(
    keep: Tensor, at_boundary: Tensor | None, grad_states: Tensor | None, states: Tensor
) -> tuple[Tensor, Tensor]:
    """The gradient of the memory after each chunk, [G, K, V], and of the first [sequences, K, V].

    Each is what came back to that boundary, from its reads and its branches, and what the next
    chunk sends on.
    """
    rows, N = states.shape[0], states.shape[1] - 1
    back = torch.zeros_like(states)
    if grad_states is not None:
        back.copy_(grad_states.flatten(0, 1))
    if at_boundary is not None:
        back[:, :-1] += at_boundary.unflatten(0, (rows, N))
    keep = keep.mT.unflatten(0, (rows, N))
    for n in reversed(range(N)):
        back[:, n].baddbmm_(keep[:, n], back[:, n + 1])
    return back[:, 1:].flatten(0, 1), back[:, 0]


def _step(
    q: Tensor, k: Tensor, v: Tensor, beta: Tensor, S: Tensor, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """One token: the decode path."""
    write = beta[..., None] * (v - k @ S)  # [B, H, 1, V]
    after = S + k.mT @ write  # [B, H, K, V]
    o = (q @ after) * q.shape[-1] ** -0.5
    return o.to(dtype), torch.stack([S, after], dim=2)
