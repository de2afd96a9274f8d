"""Attention of one layer over its key-value state, and the rotary embedding that goes with it."""

from dataclasses import dataclass

import torch
from torch import Tensor

from refine_server.kernels import dispatch
from refine_server.ttt.models.state import KVRows, KVRowsTrace, KVState, KVTrace, Trace


@dataclass(frozen=True, slots=True)
class AttentionInputs:
    """What the tokens of an attention layer are projected to, normed and rotated."""

    q: Tensor
    """[B, Hq, T, D]."""
    k: Tensor
    """[B, H, T, D], Hq a multiple of H."""
    v: Tensor
    """[B, H, T, V]."""
    scale: float
    """Factor on the scores q k^T."""
    gate: Tensor | None = None
    """[B, T, Hq V], of the output, before its sigmoid; None for a layer without one."""


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    state: KVState | None,
    *,
    scale: float | None = None,
    window: int | None = None,
) -> tuple[Tensor, KVTrace]:
    """Attend from T new tokens to themselves and to what a state holds.

    q: [B, Hq, T, D]; k, v: [B, H, T, D]. Returns [B, Hq, T, D], and the trace.
    """
    if state is not None:
        k, v = torch.cat([state.k, k], dim=2), torch.cat([state.v, v], dim=2)
    o = dispatch.attention(
        q,
        k,
        v,
        prefix_k=state.prefix_k if state else None,
        prefix_v=state.prefix_v if state else None,
        prefix_length=state.prefix_length if state else None,
        scale=scale,
        window=window,
    )
    return o, KVTrace(k=k, v=v, before=state, window=window)


def attend_rows(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    state: KVState | KVRows | None,
    *,
    scale: float | None = None,
    window: int | None = None,
) -> tuple[Tensor, Trace]:
    """Attend as ``attend`` does, row by row where the rows share nothing.

    Their prefixes, of different lengths, would have to be copied into one tensor for every token.
    """
    if not isinstance(state, KVRows):
        return attend(q, k, v, state, scale=scale, window=window)
    own = zip(q.split(1), k.split(1), v.split(1), state.rows, strict=True)
    read = [attend(*row, scale=scale, window=window) for row in own]
    return torch.cat([o for o, _ in read]), KVRowsTrace(tuple(trace for _, trace in read))


def attention_to_state(new: AttentionInputs, state: KVState) -> Tensor:
    """Compute how much the last of T new tokens attends to each token that a state holds.

    Args:
        new: of the new tokens.
        state: of P tokens in a prefix and S in each row's tail.

    Returns:
        [B, Hq, P + S], at least fp32: a softmax over these and the new tokens, of which the share
        of the new ones is left out. Tokens of the prefix that a row does not see have 0.
    """
    (B, Hq, _, D), (R, H, P, _) = new.q.shape, state.prefix_k.shape
    tail = torch.cat([state.k, new.k], dim=2)  # [B, H, S + T, D]
    last = new.q[:, :, -1] * new.scale  # [B, Hq, D]
    by_prefix = last.view(R, B // R, H, Hq // H, D).transpose(1, 2).reshape(R, H, -1, D)
    to_prefix = (by_prefix @ state.prefix_k.mT).view(R, H, B // R, Hq // H, P).transpose(1, 2)
    to_tail = last.view(B, H, Hq // H, D) @ tail.mT  # [B, H, Hq / H, S + T]
    seen = torch.arange(P, device=last.device) < state.prefix_length[:, None]  # [B, P]
    to_prefix = to_prefix.reshape(B, Hq, P).masked_fill(~seen[:, None], -torch.inf)
    scores = torch.cat([to_prefix, to_tail.reshape(B, Hq, -1)], dim=-1)
    weights = scores.softmax(-1, dtype=torch.promote_types(last.dtype, torch.float32))
    return weights[..., : P + state.k.shape[2]]


def rotary_tables(
    position: Tensor, T: int, size: int, base: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Make cosines and ``signed`` sines [B, 1, T, size] for T tokens from position [B] on."""
    wide = torch.promote_types(dtype, torch.float32)
    power = torch.arange(0, size, 2, dtype=wide, device=position.device) / size
    at = position[:, None] + torch.arange(T, device=position.device)  # [B, T]
    angle = (at[..., None] * (1.0 / base**power)).repeat(1, 1, 2)[:, None]
    return angle.cos().to(dtype), signed(angle.sin()).to(dtype)


def signed(sin: Tensor) -> Tensor:
    """Negate the first half of sines [..., size], as ``rotate`` takes them."""
    first, second = sin.chunk(2, dim=-1)
    return torch.cat([-first, second], dim=-1)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the first channels of x [B, H, T, D] in RoPE's half-split layout.

    cos, sin (``signed``): [B, 1, T, D_rotary]; channels beyond D_rotary stay as they are.
    """
    size = cos.shape[-1]
    if size < x.shape[-1]:
        turned, rest = x.split([size, x.shape[-1] - size], dim=-1)
        return torch.cat([rotate(turned, cos, sin), rest], dim=-1)
    if x.requires_grad:
        return x * cos + x.roll(size // 2, -1) * sin
    half, turned = size // 2, x * cos
    turned[..., :half].addcmul_(x[..., half:], sin[..., :half])  # without a copy of x
    turned[..., half:].addcmul_(x[..., :half], sin[..., half:])
    return turned
