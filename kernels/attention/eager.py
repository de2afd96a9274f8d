"""Attention over a shared prefix and each branch's own tail, without copying the prefix.

All branches of a row attend to the row's prefix as one long query, so keys and values of a document
are read once however many rollouts branch from it. A sequence without a shared prefix goes through
torch's fused kernel.
"""

from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from refine_server.kernels.cascade_attention.eager import cascade_attention

BLOCK, MOST_IN_BLOCKS = 128, 512
"""Up to 512 keys torch's causal kernel for CPUs also computes the scores that it masks; blocks skip
them."""

LONG_PREFIX = 512
"""Tokens of a shared prefix from which on the branches' scores are not written to memory."""


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    prefix_k: Tensor | None = None,
    prefix_v: Tensor | None = None,
    prefix_length: Tensor | None = None,
    scale: float | None = None,
    window: int | None = None,
) -> Tensor:
    """Compute ``naive.attention`` without copies of the prefix; same arguments, same results."""
    T, S = q.shape[2], k.shape[2]
    if prefix_k is not None and prefix_k.shape[2] == 0:
        prefix_k = None
    if window is not None and window >= S and prefix_k is None:
        window = None  # wide enough to see everything
    if prefix_k is None or prefix_v is None or prefix_length is None:
        if S == T and window is not None:
            return _banded(q, k, v, window, scale)
        if S == T and BLOCK < T <= MOST_IN_BLOCKS and q.device.type == "cpu":
            return _in_blocks(q, k, v, scale)
        fused = S == T
        mask = None if fused or (T == 1 and window is None) else _tail_mask(T, S, window, q.device)
        return _fused(q, k, v, mask, scale, causal=fused and T > 1)
    if window is None and _cascades(q, k, v, prefix_k):
        return _cascaded(q, k, v, prefix_k, prefix_v, prefix_length, scale)
    prefix_mask = _prefix_mask(prefix_length, prefix_k.shape[2], T, S, window)  # [B, T, P]
    if prefix_k.shape[0] == q.shape[0] and T > 1:
        tail = _tail_mask(T, S, window, q.device).expand(q.shape[0], T, S)
        mask = torch.cat([prefix_mask, tail], dim=-1)[:, None]  # [B, 1, T, P + S]
        keys, values = torch.cat([prefix_k, k], dim=2), torch.cat([prefix_v, v], dim=2)
        return _fused(q, keys, values, mask, scale, causal=False)
    return _shared(q, k, v, prefix_k, prefix_v, prefix_mask, scale, window)


def _fused(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float | None, *, causal: bool
) -> Tensor:
    groups = q.shape[1] // k.shape[1]
    return F.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, is_causal=causal, scale=scale, enable_gqa=groups > 1
    )


def _in_blocks(q: Tensor, k: Tensor, v: Tensor, scale: float | None) -> Tensor:
    """Attend causally, one block of queries at a time over the keys up to the block's end."""
    T = q.shape[2]
    outputs = []
    for start in range(0, T, BLOCK):
        end = min(start + BLOCK, T)
        mask = _block_mask(end - start, end, q.dtype, q.device) if start else None
        own = q[:, :, start:end], k[:, :, :end], v[:, :, :end]
        outputs.append(_fused(*own, mask, scale, causal=not start))
    return torch.cat(outputs, dim=2)


@lru_cache(maxsize=16)
def _block_mask(T: int, S: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return the mask added to scores of the last T of S tokens, [T, S]; all layers share it."""
    unseen = ~_tail_mask(T, S, None, device)
    return torch.zeros(T, S, dtype=dtype, device=device).masked_fill_(unseen, -torch.inf)


def _banded(q: Tensor, k: Tensor, v: Tensor, window: int, scale: float | None) -> Tensor:
    """Attend within a window shorter than the sequence, in blocks of one window.

    A block of queries sees its own block of keys and the one before, so T · 2 window scores are
    computed instead of T², and there is no [T, T] mask.
    """
    B, Hq, T, D = q.shape
    q1, k1, v1 = (x[:, :, :window] for x in (q, k, v))
    first = _fused(q1, k1, v1, None, scale, causal=window > 1)
    N = -(-T // window) - 1  # blocks after the first
    pad = (N + 1) * window - T
    queries = F.pad(q[:, :, window:], (0, 0, 0, pad)).view(B, Hq, N, window, D)
    queries = queries.transpose(1, 2).reshape(B * N, Hq, window, D)
    keys, values = (
        F.pad(x, (0, 0, 0, pad))
        .unfold(2, 2 * window, window)  # [B, H, N, D, 2 window]
        .permute(0, 2, 1, 4, 3)
        .reshape(B * N, x.shape[1], 2 * window, x.shape[3])
        for x in (k, v)
    )
    mask = _tail_mask(window, 2 * window, window, q.device)
    o = _fused(queries, keys, values, mask, scale, causal=False)
    o = o.view(B, N, Hq, window, -1).transpose(1, 2).reshape(B, Hq, N * window, -1)
    return torch.cat([first, o[:, :, : T - window]], dim=2)


def _tail_mask(T: int, S: int, window: int | None, device: torch.device) -> Tensor:
    """Return [T, S], True where a query sees a token of the tail."""
    behind = torch.arange(S - T, S, device=device)[:, None] - torch.arange(S, device=device)
    return behind >= 0 if window is None else (behind >= 0) & (behind < window)


def _prefix_mask(length: Tensor, P: int, T: int, S: int, window: int | None) -> Tensor:
    """Return [B, T, P], True where a query sees a token of the prefix."""
    j = torch.arange(P, device=length.device)
    seen = (j < length[:, None])[:, None].expand(-1, T, -1)
    if window is None:
        return seen
    at = length[:, None] + torch.arange(S - T, S, device=length.device)  # [B, T]
    return seen & (at[..., None] - j < window)


def _shared(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    prefix_k: Tensor,
    prefix_v: Tensor,
    prefix_mask: Tensor,
    scale: float | None,
    window: int | None,
) -> Tensor:
    """Attend with one softmax over prefix and tail; the prefix's products are shared by a row."""
    B, Hq, T, D = q.shape
    R, H, P, _ = prefix_k.shape
    S, groups, branches = k.shape[2], Hq // H, B // R
    q = q * (D**-0.5 if scale is None else scale)

    # One long query per row and key head: [R, H, branches * groups * T, D].
    per_row = q.reshape(R, branches, H, groups * T, D).transpose(1, 2)
    on_prefix = per_row.reshape(R, H, branches * groups * T, D) @ prefix_k.mT
    on_prefix = on_prefix.view(R, H, branches, groups, T, P).transpose(1, 2)
    mask = prefix_mask.view(R, branches, 1, 1, T, P)
    on_prefix = on_prefix.masked_fill(~mask, -torch.inf).reshape(B, H, groups, T, P)

    on_tail = (q.reshape(B, H, groups * T, D) @ k.mT).view(B, H, groups, T, S)
    if T > 1 or window is not None:
        on_tail = on_tail.masked_fill(~_tail_mask(T, S, window, q.device), -torch.inf)

    weights = torch.cat([on_prefix, on_tail], dim=-1).softmax(-1)  # [B, H, groups, T, P + S]
    p_prefix, p_tail = weights.split([P, S], dim=-1)
    p_prefix = p_prefix.reshape(R, branches, H, groups * T, P).transpose(1, 2)
    from_prefix = p_prefix.reshape(R, H, branches * groups * T, P) @ prefix_v
    from_prefix = from_prefix.view(R, H, branches, groups * T, -1).transpose(1, 2)
    from_tail = p_tail.reshape(B, H, groups * T, S) @ v
    o: Tensor = from_prefix.reshape(B, H, groups * T, v.shape[3]) + from_tail
    return o.reshape(B, Hq, T, v.shape[3])


def _cascades(q: Tensor, k: Tensor, v: Tensor, prefix_k: Tensor) -> bool:
    """Return whether ``_cascaded`` computes the branches.

    Its kernel is for CPUs, and its parts must not be rounded to half precision. Merging by
    log-sum-exp loses about one digit more than one softmax does, so several branches of a prefix
    are merged only where writing their scores to memory would take most of the time.
    """
    same_width = k.shape[3] == v.shape[3]
    worth_it = prefix_k.shape[0] == q.shape[0] or prefix_k.shape[2] >= LONG_PREFIX
    return q.device.type == "cpu" and q.dtype.itemsize >= 4 and same_width and worth_it


def _cascaded(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    prefix_k: Tensor,
    prefix_v: Tensor,
    prefix_length: Tensor,
    scale: float | None,
) -> Tensor:
    """Compute the branches by ``cascade_attention``, with causality in the tail's mask."""
    B, Hq, T, D = q.shape
    H = prefix_k.shape[1]
    tail_mask = None
    if T > 1:
        unseen = ~_tail_mask(T, k.shape[2], None, q.device)
        tail_mask = q.new_zeros(unseen.shape).masked_fill_(unseen, -torch.inf).repeat(Hq // H, 1)
    q = q.reshape(B, H, -1, D)  # the queries of all heads that share a key head
    scale = D**-0.5 if scale is None else scale
    o = cascade_attention(q, k, v, prefix_k, prefix_v, scale, prefix_length, tail_mask)
    return o.view(B, Hq, T, D)
