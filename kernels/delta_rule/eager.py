"""The delta rule in chunks (arXiv 2406.06484, section 3.2): matrix products instead of a loop.

With M = (I + tril(beta K K^T, -1))^-1, a chunk has U = M beta V and W = M beta K, and then

    D = U - W S        S' = S + K^T D        o = (Q S + tril(Q K^T) D) / sqrt(K)

D and S' are computed chunk by chunk, everything else for all chunks at once. Turning S' into a
linear map of S first, for all chunks at once as well, would take twice the products. The backward
pass is written out: autograd's own took twice the products again, and a copy for each of them.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from refine_server.kernels.delta_rule import CHUNK

SUBSTITUTED = 32
"""Rows up to which a triangular system is solved by substitution."""


def delta_rule(
    q: Tensor, k: Tensor, v: Tensor, beta: Tensor, state: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Compute ``naive.delta_rule`` in chunks; same arguments, same results."""
    S = _start(k, v, state)
    if k.shape[2] == 1:
        qf, kf, vf, bf = (x.to(S.dtype) for x in (q, k, v, beta))
        return _step(qf, kf, vf, bf, S, q.dtype)
    apply: Callable[..., tuple[Tensor, Tensor]] = _DeltaRule.apply
    return apply(q, k, v, beta, S)


def delta_states(k: Tensor, v: Tensor, beta: Tensor, state: Tensor | None = None) -> Tensor:
    """Compute ``naive.delta_states`` in chunks; same arguments, same results."""
    apply: Callable[..., tuple[None, Tensor]] = _DeltaRule.apply
    return apply(None, k, v, beta, _start(k, v, state))[1]


def _start(k: Tensor, v: Tensor, state: Tensor | None) -> Tensor:
    """Return the memory before the first token, [B, H, K, V], at least fp32."""
    dtype = torch.promote_types(k.dtype, torch.float32)
    S = k.new_zeros((), dtype=dtype) if state is None else state.to(dtype)
    return S.expand(*k.shape[:2], k.shape[-1], v.shape[-1])


class _DeltaRule(torch.autograd.Function):
    """The rule in chunks, with its backward pass.

    Inside, x [N, L, C, D] holds N chunks of C tokens of all L = B H sequences. Where only the
    states are wanted, q is None and so is o.
    """

    @staticmethod
    def forward(
        ctx: Any, q: Tensor | None, k: Tensor, v: Tensor, beta: Tensor, state: Tensor
    ) -> tuple[Tensor | None, Tensor]:
        sizes, dtype, scale = k.shape[:3], k.dtype, k.shape[-1] ** -0.5
        k, v, beta = (_chunks(x, state.dtype) for x in (k, v, beta[..., None]))
        bk = k * beta
        M = _inverse((bk @ k.mT).tril_(-1))  # [N, L, C, C]
        U, W = M @ (v * beta), M @ bk  # [N, L, C, V], [N, L, C, K]
        D, states = _scan(k, U, W, state.flatten(0, 1))  # [N, L, C, V], [N + 1, L, K, V]
        o = P = None
        if q is not None:
            q = _chunks(q, state.dtype).mul_(scale)
            P = (q @ k.mT).tril_()
            o = (q @ states[:-1]).flatten(0, 1).baddbmm_(P.flatten(0, 1), D.flatten(0, 1))
            o = _tokens(o.view_as(v), sizes).to(dtype)
        ctx.save_for_backward(q, k, v, beta, M, U, W, D, P, states)
        ctx.set_materialize_grads(False)
        ctx.sizes, ctx.scale = sizes, scale
        return o, states.transpose(0, 1).unflatten(0, sizes[:2])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_o: Tensor | None, grad_states: Tensor | None) -> Any:
        q, k, v, beta, M, U, W, D, P, states = ctx.saved_tensors
        back = torch.zeros_like(states)  # gradients of the boundary states: from their branches …
        if grad_states is not None:
            back.copy_(grad_states.flatten(0, 1).transpose(0, 1))
        if grad_o is None:
            grad_q, grad_k, grad_D = None, torch.zeros_like(k), torch.zeros_like(D)
        else:
            grad_o = _chunks(grad_o, k.dtype)
            grad_P = (grad_o @ D.mT).tril_()
            grad_q = _added(grad_o @ states[:-1].mT, grad_P, k).mul_(ctx.scale)
            grad_k, grad_D = grad_P.mT @ q, P.mT @ grad_o
            _added(back[:-1], q.mT, grad_o)  # … from the reads …
        _scan_back(k, W, grad_D, back)  # … and from the next chunk
        _added(grad_k, D, back[1:].mT)
        grad_bv, grad_bk = M.mT @ grad_D, M.mT @ (grad_D @ states[:-1].mT).neg_()
        grad_A = _added(grad_bv @ U.mT, grad_bk, W.mT).tril_(-1)
        _added(grad_bk, grad_A, k, alpha=-1)
        _added(grad_k, grad_A.mT, k * beta, alpha=-1).addcmul_(grad_bk, beta)
        grad_beta = torch.linalg.vecdot(grad_bk, k).add_(torch.linalg.vecdot(grad_bv, v))
        return (
            None if grad_q is None else _tokens(grad_q, ctx.sizes),
            _tokens(grad_k, ctx.sizes),
            _tokens(grad_bv.mul_(beta), ctx.sizes),
            _tokens(grad_beta[..., None], ctx.sizes)[..., 0],
            back[0].unflatten(0, ctx.sizes[:2]),
        )


def _chunks(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Cut [B, H, T, D] into chunks [N, B H, C, D]; the padding's beta = 0 writes nothing."""
    B, H, T, D = x.shape
    C = min(CHUNK, T)
    N, rest = divmod(T, C)
    count = N + (rest > 0)
    chunks = torch.empty(count, B, H, C, D, dtype=dtype, device=x.device)
    chunks[:N] = x[:, :, : N * C].unflatten(2, (N, C)).movedim(2, 0)
    if rest:
        chunks[N, :, :, :rest] = x[:, :, N * C :]
        chunks[N, :, :, rest:] = 0
    return chunks.view(count, B * H, C, D)


def _tokens(x: Tensor, sizes: torch.Size) -> Tensor:
    """Invert ``_chunks`` for sizes (B, H, T); a token's heads are adjacent in memory."""
    B, H, T = sizes
    N, _, C, D = x.shape
    tokens = x.view(N, B, H, C, D).permute(1, 0, 3, 2, 4)
    return tokens.reshape(B, N * C, H, D)[:, :T].transpose(1, 2)


def _inverse(A: Tensor) -> Tensor:
    """Return (I + A)^-1 of A [N, L, C, C], strictly lower triangular.

    It is computed by halves, because substitution is slow: with X and Y the inverses of the two
    diagonal blocks, it is [[X, 0], [-Y A21 X, Y]].
    """
    half, odd = divmod(A.shape[-1], 2)
    if odd or half < SUBSTITUTED:
        eye = torch.eye(A.shape[-1], dtype=A.dtype, device=A.device).expand_as(A)
        solved: Tensor = torch.linalg.solve_triangular(A, eye, upper=False, unitriangular=True)
        return solved
    diagonal = torch.cat([A[..., :half, :half], A[..., half:, half:]])
    X, Y = _inverse(diagonal).chunk(2)
    inverse = torch.zeros_like(A)
    inverse[..., :half, :half], inverse[..., half:, half:] = X, Y
    inverse[..., half:, :half] = (Y @ (A[..., half:, :half] @ X)).neg_()
    return inverse


def _added(x: Tensor, a: Tensor, b: Tensor, *, alpha: float = 1) -> Tensor:
    """Add alpha a b to x in place, of [N, L, ..., ...] each, and return x."""
    x.flatten(0, 1).baddbmm_(a.flatten(0, 1), b.flatten(0, 1), alpha=alpha)
    return x


def _scan(k: Tensor, U: Tensor, W: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """Return D of each chunk, and the memory before each and after the last: [N + 1, L, K, V]."""
    D, N = torch.empty_like(U), U.shape[0]
    states = state.new_empty(N + 1, *state.shape)
    states[0] = state
    for n in range(N):
        torch.baddbmm(U[n], W[n], states[n], alpha=-1, out=D[n])
        torch.baddbmm(states[n], k[n].mT, D[n], out=states[n + 1])
    return D, states


def _scan_back(k: Tensor, W: Tensor, grad_D: Tensor, back: Tensor) -> None:
    """Add later chunks' shares to the gradients of D and of the boundary states, in place."""
    for n in reversed(range(k.shape[0])):
        grad_D[n].baddbmm_(k[n], back[n + 1])
        back[n].add_(back[n + 1]).baddbmm_(W[n].mT, grad_D[n], alpha=-1)


def _step(
    q: Tensor, k: Tensor, v: Tensor, beta: Tensor, S: Tensor, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Process one token: the decode path."""
    write = beta[..., None] * (v - k @ S)  # [B, H, 1, V]
    after = S + k.mT @ write  # [B, H, K, V]
    o = (q @ after) * q.shape[-1] ** -0.5
    return o.to(dtype), torch.stack([S, after], dim=2)
