"""The kernels of the chunked delta rule; ``triton_impl`` explains and launches them.

All tensors are contiguous: q, k [B H, T, K], v, o [B H, T, V], beta [B H, T] and states
[B H, N + 1, K, V]. Scratch buffers are padded to whole chunks. Tokens past T load as zeros; with
beta = 0 they write nothing.
"""

import triton
import triton.language as tl

from refine_server.kernels.triton_support import dot


@triton.jit
def _load(
    x, row, first, length, WIDTH: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr, at=0
):
    """Load ROWS tokens from ``first`` and BLOCK columns from ``at``, of row [length, WIDTH]."""
    t = first + tl.arange(0, ROWS)
    c = at + tl.arange(0, BLOCK)
    where = (row.to(tl.int64) * length + t)[:, None] * WIDTH + c[None, :]
    return tl.load(x + where, mask=(t < length)[:, None] & (c < WIDTH)[None, :], other=0.0).to(
        tl.float32
    )


@triton.jit
def _store(
    x, y, row, first, length, WIDTH: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr, at=0
):
    """Store y where ``_load`` would read it."""
    t = first + tl.arange(0, ROWS)
    c = at + tl.arange(0, BLOCK)
    where = (row.to(tl.int64) * length + t)[:, None] * WIDTH + c[None, :]
    mask = (t < length)[:, None] & (c < WIDTH)[None, :]
    tl.store(x + where, y.to(x.dtype.element_ty), mask=mask)


@triton.jit
def _load_beta(beta, row, first, T, C: tl.constexpr):
    t = first + tl.arange(0, C)
    return tl.load(beta + row.to(tl.int64) * T + t, mask=t < T, other=0.0).to(tl.float32)


@triton.jit
def _causal(x, C: tl.constexpr):
    i = tl.arange(0, C)
    return tl.where(i[:, None] >= i[None, :], x, 0.0)


@triton.jit
def _below(x, C: tl.constexpr):
    i = tl.arange(0, C)
    return tl.where(i[:, None] > i[None, :], x, 0.0)


@triton.jit
def _zeros(M: tl.constexpr, N: tl.constexpr):
    return tl.zeros([M, N], dtype=tl.float32)


@triton.jit(do_not_specialize=["T"])
def solve(
    k, v, beta, inverse, w, u, T,
    K: tl.constexpr, V: tl.constexpr, C: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_V: tl.constexpr,
    P: tl.constexpr,
):  # fmt: skip
    """Compute M by forward substitution, W = M beta K and U = M beta V, of one chunk."""
    n, row, chunks = tl.program_id(0), tl.program_id(1), tl.num_programs(0)
    ks = _load(k, row, n * C, T, K, C, BLOCK_K)
    b = _load_beta(beta, row, n * C, T, C)
    kb = ks * b[:, None]
    i = tl.arange(0, C)
    m = -_below(dot(kb, tl.trans(ks), _zeros(C, C), P), C)
    for r in range(1, C):
        own = tl.sum(tl.where(i[:, None] == r, m, 0.0), axis=0)  # row r: columns below r
        own += tl.sum(own[:, None] * m, axis=0)
        m = tl.where((i[:, None] == r) & (i[None, :] < r), own[None, :], m)
    m += tl.where(i[:, None] == i[None, :], 1.0, 0.0)
    _store(inverse, m, row, n * C, chunks * C, C, C, C)
    _store(w, dot(m, kb, _zeros(C, BLOCK_K), P), row, n * C, chunks * C, K, C, BLOCK_K)
    for at in range(0, V, BLOCK_V):
        vb = _load(v, row, n * C, T, V, C, BLOCK_V, at) * b[:, None]
        _store(u, dot(m, vb, _zeros(C, BLOCK_V), P), row, n * C, chunks * C, V, C, BLOCK_V, at)


@triton.jit(do_not_specialize=["T", "chunks"])
def scan(
    k, w, d, state, states, T, chunks,
    K: tl.constexpr, V: tl.constexpr, C: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_V: tl.constexpr,
    P: tl.constexpr,
):  # fmt: skip
    """Compute boundary states, and D = U - W S in place of U, for some columns of one memory."""
    at, row = tl.program_id(0) * BLOCK_V, tl.program_id(1)
    S = _load(state, row, 0, K, V, BLOCK_K, BLOCK_V, at)
    for n in range(chunks):
        _store(states, S, row * (chunks + 1) + n, 0, K, V, BLOCK_K, BLOCK_V, at)
        ws = _load(w, row, n * C, chunks * C, K, C, BLOCK_K)
        ds = _load(d, row, n * C, chunks * C, V, C, BLOCK_V, at) - dot(ws, S, _zeros(C, BLOCK_V), P)
        _store(d, ds, row, n * C, chunks * C, V, C, BLOCK_V, at)
        S = dot(tl.trans(_load(k, row, n * C, T, K, C, BLOCK_K)), ds, S, P)
    _store(states, S, row * (chunks + 1) + chunks, 0, K, V, BLOCK_K, BLOCK_V, at)


@triton.jit(do_not_specialize=["T"])
def read(
    q, k, d, states, o, T, scale,
    K: tl.constexpr, V: tl.constexpr, C: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_V: tl.constexpr,
    P: tl.constexpr,
):  # fmt: skip
    """Compute o = (Q S + tril(Q K^T) D) scale, of one chunk and some columns."""
    n, at, row = tl.program_id(0), tl.program_id(1) * BLOCK_V, tl.program_id(2)
    chunks = tl.num_programs(0)
    qs = _load(q, row, n * C, T, K, C, BLOCK_K)
    p = _causal(dot(qs, tl.trans(_load(k, row, n * C, T, K, C, BLOCK_K)), _zeros(C, C), P), C)
    S = _load(states, row * (chunks + 1) + n, 0, K, V, BLOCK_K, BLOCK_V, at)
    ds = _load(d, row, n * C, chunks * C, V, C, BLOCK_V, at)
    os = dot(p, ds, dot(qs, S, _zeros(C, BLOCK_V), P), P)
    _store(o, os * scale, row, n * C, T, V, C, BLOCK_V, at)


@triton.jit(do_not_specialize=["T"])
def read_backward(
    q, k, grad_o, grad_d, T, scale,
    K: tl.constexpr, V: tl.constexpr, C: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_V: tl.constexpr,
    P: tl.constexpr,
):  # fmt: skip
    """Compute the reads' share of D's gradient, tril(Q K^T)^T dO scale, of one chunk."""
    n, at, row = tl.program_id(0), tl.program_id(1) * BLOCK_V, tl.program_id(2)
    qs = _load(q, row, n * C, T, K, C, BLOCK_K)
    p = _causal(dot(qs, tl.trans(_load(k, row, n * C, T, K, C, BLOCK_K)), _zeros(C, C), P), C)
    g = dot(tl.trans(p), _load(grad_o, row, n * C, T, V, C, BLOCK_V, at), _zeros(C, BLOCK_V), P)
    _store(grad_d, g * scale, row, n * C, tl.num_programs(0) * C, V, C, BLOCK_V, at)


@triton.jit(do_not_specialize=["T", "chunks"])
def scan_backward(
    q, k, w, grad_o, grad_states, grad_d, after, grad_state, T, chunks, scale,
    K: tl.constexpr, V: tl.constexpr, C: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_V: tl.constexpr,
    P: tl.constexpr,
):  # fmt: skip
    """Scan in reverse: G, the gradient of the state after each chunk, and the gradient of D.

    ``after`` [B H, N, K, V] keeps G for ``chunk_backward``.
    """
    at, row = tl.program_id(0) * BLOCK_V, tl.program_id(1)
    G = _load(grad_states, row * (chunks + 1) + chunks, 0, K, V, BLOCK_K, BLOCK_V, at)
    for back in range(chunks):
        n = chunks - 1 - back
        _store(after, G, row * chunks + n, 0, K, V, BLOCK_K, BLOCK_V, at)
        gd = _load(grad_d, row, n * C, chunks * C, V, C, BLOCK_V, at)
        gd = dot(_load(k, row, n * C, T, K, C, BLOCK_K), G, gd, P)
        _store(grad_d, gd, row, n * C, chunks * C, V, C, BLOCK_V, at)
        G += _load(grad_states, row * (chunks + 1) + n, 0, K, V, BLOCK_K, BLOCK_V, at)
        go = _load(grad_o, row, n * C, T, V, C, BLOCK_V, at) * scale
        G = dot(tl.trans(_load(q, row, n * C, T, K, C, BLOCK_K)), go, G, P)
        G = dot(tl.trans(_load(w, row, n * C, chunks * C, K, C, BLOCK_K)), -gd, G, P)
    _store(grad_state, G, row, 0, K, V, BLOCK_K, BLOCK_V, at)


@triton.jit(do_not_specialize=["T"])
def solve_backward(
    k, v, beta, inverse, w, d, states, grad_o, grad_d, grad_v, grad_beta, grad_bk, grad_a, grad_p,
    T, scale,
    K: tl.constexpr, V: tl.constexpr, C: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_V: tl.constexpr,
    P: tl.constexpr,
):  # fmt: skip
    """Compute gradients of one chunk's v and beta, and what ``chunk_backward`` needs for q and k.

    With X = [U, W] = M R and R = [beta V, beta K]: dR = M^T dX and d tril(beta K K^T, -1) =
    -tril(dR X^T, -1). The gradient of beta K is stored in ``grad_bk`` [B H, T, K], that of the
    triangle, times beta, in ``grad_a`` and that of tril(Q K^T) in ``grad_p``, [B H, T, C] each.
    """
    n, row, chunks = tl.program_id(0), tl.program_id(1), tl.num_programs(0)
    first, padded = n * C, chunks * C
    mt = tl.trans(_load(inverse, row, first, padded, C, C, C))
    b = _load_beta(beta, row, first, T, C)
    gw, ga, gp = _zeros(C, BLOCK_K), _zeros(C, C), _zeros(C, C)
    gb = tl.zeros([C], dtype=tl.float32)
    for at in range(0, V, BLOCK_V):
        S = _load(states, row * (chunks + 1) + n, 0, K, V, BLOCK_K, BLOCK_V, at)
        gd = _load(grad_d, row, first, padded, V, C, BLOCK_V, at)
        gw = dot(-gd, tl.trans(S), gw, P)
        ds = _load(d, row, first, padded, V, C, BLOCK_V, at)
        gp = dot(_load(grad_o, row, first, T, V, C, BLOCK_V, at) * scale, tl.trans(ds), gp, P)
        vs = _load(v, row, first, T, V, C, BLOCK_V, at)
        us = dot(tl.trans(mt), vs * b[:, None], _zeros(C, BLOCK_V), P)
        gr = dot(mt, gd, _zeros(C, BLOCK_V), P)  # of beta V
        ga = dot(-gr, tl.trans(us), ga, P)
        gb += tl.sum(gr * vs, axis=1)
        _store(grad_v, gr * b[:, None], row, first, T, V, C, BLOCK_V, at)
    _store(grad_p, _causal(gp, C), row, first, padded, C, C, C)
    gr = dot(mt, gw, _zeros(C, BLOCK_K), P)
    _store(grad_bk, gr, row, first, padded, K, C, BLOCK_K)
    ga = dot(-gr, tl.trans(_load(w, row, first, padded, K, C, BLOCK_K)), ga, P)
    ga = _below(ga, C)
    _store(grad_a, ga * b[:, None], row, first, padded, C, C, C)
    ks = _load(k, row, first, T, K, C, BLOCK_K)
    gb += tl.sum(gr * ks, axis=1)
    gb += tl.sum(ga * dot(ks, tl.trans(ks), _zeros(C, C), P), axis=1)
    t = first + tl.arange(0, C)
    at_beta = grad_beta + row.to(tl.int64) * T + t
    tl.store(at_beta, gb.to(grad_beta.dtype.element_ty), mask=t < T)


@triton.jit(do_not_specialize=["T"])
def chunk_backward(
    q, k, beta, d, states, grad_o, after, grad_bk, grad_a, grad_p, grad_q, grad_k, T, scale,
    K: tl.constexpr, V: tl.constexpr, C: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_V: tl.constexpr,
    P: tl.constexpr,
):  # fmt: skip
    """Compute gradients of one chunk's q and k, BLOCK_K of their columns."""
    n, row, chunks = tl.program_id(0), tl.program_id(2), tl.num_programs(0)
    part, first, padded = tl.program_id(1) * BLOCK_K, n * C, chunks * C
    gq, gk = _zeros(C, BLOCK_K), _zeros(C, BLOCK_K)
    for at in range(0, V, BLOCK_V):
        S = _load(states, row * (chunks + 1) + n, part, K, V, BLOCK_K, BLOCK_V, at)
        G = _load(after, row * chunks + n, part, K, V, BLOCK_K, BLOCK_V, at)
        go = _load(grad_o, row, first, T, V, C, BLOCK_V, at) * scale
        gq = dot(go, tl.trans(S), gq, P)
        gk = dot(_load(d, row, first, padded, V, C, BLOCK_V, at), tl.trans(G), gk, P)
    b = _load_beta(beta, row, first, T, C)
    gk += _load(grad_bk, row, first, padded, K, C, BLOCK_K, part) * b[:, None]
    gp = _load(grad_p, row, first, padded, C, C, C)
    gk = dot(tl.trans(gp), _load(q, row, first, T, K, C, BLOCK_K, part), gk, P)
    ks = _load(k, row, first, T, K, C, BLOCK_K, part)
    _store(grad_q, dot(gp, ks, gq, P), row, first, T, K, C, BLOCK_K, part)
    ga = _load(grad_a, row, first, padded, C, C, C)
    gk = dot(ga + tl.trans(ga), ks, gk, P)
    _store(grad_k, gk, row, first, T, K, C, BLOCK_K, part)


@triton.jit
def step(
    q, k, v, beta, state, o, states, scale,
    K: tl.constexpr, V: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_V: tl.constexpr,
):  # fmt: skip
    """Process one token: rewrite and read some columns of one memory, in one pass over it."""
    at, row = tl.program_id(0) * BLOCK_V, tl.program_id(1)
    i = tl.arange(0, BLOCK_K)
    c = at + tl.arange(0, BLOCK_V)
    qs = tl.load(q + row * K + i, mask=i < K, other=0.0).to(tl.float32)
    ks = tl.load(k + row * K + i, mask=i < K, other=0.0).to(tl.float32)
    vs = tl.load(v + row * V + c, mask=c < V, other=0.0).to(tl.float32)
    S = _load(state, row, 0, K, V, BLOCK_K, BLOCK_V, at)
    write = tl.load(beta + row).to(tl.float32) * (vs - tl.sum(ks[:, None] * S, axis=0))
    _store(states, S, row * 2, 0, K, V, BLOCK_K, BLOCK_V, at)
    S += ks[:, None] * write[None, :]
    _store(states, S, row * 2 + 1, 0, K, V, BLOCK_K, BLOCK_V, at)
    os = tl.sum(qs[:, None] * S, axis=0) * scale
    tl.store(o + row * V + c, os.to(o.dtype.element_ty), mask=c < V)
