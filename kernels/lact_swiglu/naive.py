"""LaCT's memory, read and written token by token: the definition of the ops."""

import torch
import torch.nn.functional as F
from torch import Tensor

from refine_server.kernels.lact_swiglu import (
    MUON_COEFFICIENTS,
    MUON_EPS,
    NORM_EPS,
    Update,
    Weights,
    three,
)


def lact_apply(q: Tensor, w0: Tensor, w1: Tensor, w2: Tensor) -> Tensor:
    """Read the memory: o[t] = w1 (silu(w0 q[t]) * (w2 q[t])).

    Args:
        q: [B, H, T, D], T >= 0.
        w0, w2: [M, H, F, D], and w1: [M, H, D, F], at least fp32, B a multiple of M: rows m B/M …
            (m + 1) B/M - 1 share memory m. Products are in q's dtype, as in lact_llm.

    Returns:
        [B, H, T, D] in q's dtype.
    """
    B, H, _, _ = q.shape
    rows = B // w0.shape[0]
    w0, w1, w2 = (w.to(q.dtype) for w in (w0, w1, w2))
    outputs = []
    for b in range(B):
        for h in range(H):
            x, m = q[b, h], b // rows  # [T, D]
            outputs.append((F.silu(x @ w0[m, h].mT) * (x @ w2[m, h].mT)) @ w1[m, h].mT)
    return torch.stack(outputs).view(q.shape)


def lact_gradient(
    k: Tensor,
    v: Tensor,
    lr0: Tensor,
    lr1: Tensor,
    lr2: Tensor,
    w0: Tensor,
    w1: Tensor,
    w2: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute the gradients of <f(k[t]), v[t]>, scaled by the rates and summed over one chunk.

    They are ascent directions: the update adds them. lr0 and lr2 scale the keys and lr1 the hidden
    units, so a rate may differ from channel to channel.

    Args:
        k, v: [B, H, T, D], one chunk, T >= 1.
        lr0, lr2: [B, H, T, 1] or [B, H, T, D], at least fp32.
        lr1: [B, H, T, 1] or [B, H, T, F], at least fp32.
        w0, w2: [B, H, F, D], and w1: [B, H, D, F], at least fp32. Products are in k's dtype.

    Returns:
        dw0 [B, H, F, D], dw1 [B, H, D, F] and dw2 [B, H, F, D], at least fp32.
    """
    dtype = torch.promote_types(k.dtype, torch.float32)
    w0, w1, w2 = (w.to(k.dtype) for w in (w0, w1, w2))
    dw0, dw1, dw2 = (torch.zeros_like(w, dtype=dtype) for w in (w0, w1, w2))
    for t in range(k.shape[2]):
        key, value = k[:, :, t, :, None], v[:, :, t, :, None]  # [B, H, D, 1]
        gate, up = w0 @ key, w2 @ key  # [B, H, F, 1]
        d_hidden = w1.mT @ value  # [B, H, F, 1]
        sigmoid = gate.sigmoid()
        d_gate = d_hidden * up * sigmoid * (1 + gate * (1 - sigmoid))
        hidden, d_up = F.silu(gate) * up, d_hidden * F.silu(gate)
        rate0, rate1, rate2 = (lr[:, :, t, None] for lr in (lr0, lr1, lr2))  # [B, H, 1, 1|D|F]
        dw0 = dw0 + d_gate @ (key.mT * rate0).to(k.dtype)
        dw1 = dw1 + value @ (hidden.mT * rate1).to(k.dtype)
        dw2 = dw2 + d_up @ (key.mT * rate2).to(k.dtype)
    return dw0, dw1, dw2


def lact_update(
    steps: Weights,
    before: Weights,
    norms: Weights,
    momentum: Weights | None = None,
    keep: Tensor | None = None,
    *,
    muon: bool = False,
    prenorm: bool = False,
) -> Update:
    """Add a chunk's steps to the memory and rescale its rows to the norms of the initial weights.

    Args:
        steps: from ``lact_gradient``.
        before: the weights they are added to: the last chunk's ``main`` if prenorm, else its
            ``weights``.
        norms: [B, H, F|D, 1] each, the norms of the initial weights' rows.
        momentum: of the last chunk; None: the model has no momentum.
        keep: [B, H, 1, 1], the factor of the old momentum; given if and only if momentum is.
        muon: whether to orthogonalise the steps, after momentum.
        prenorm: whether to return ``main`` as well: steps add up unscaled, and only the weights
            that are read are rescaled.
    """
    if momentum is not None:
        assert keep is not None
        steps = three(s + m * keep for s, m in zip(steps, momentum, strict=True))
        momentum = steps
    if muon:
        steps = three(orthogonal(s) for s in steps)
    main = three(w + s for w, s in zip(before, steps, strict=True))
    rows = zip(main, norms, strict=True)
    scaled = three(w / (w.norm(dim=-1, keepdim=True) + NORM_EPS) * n for w, n in rows)
    return Update(scaled, main if prenorm else None, momentum)


def orthogonal(steps: Tensor) -> Tensor:
    """Push the singular values of matrices [M, H, a, b] towards 1, as Muon does.

    The Newton–Schulz iterations run in bf16 as in lact_llm, whatever the model's dtype. Where a
    step has small singular values they amplify rounding errors several hundred times, so a model
    trained with this noise computes something else without it. For the same reason a product is
    summed in fp32 and rounded once, as tensor cores do and not every CPU's bf16 product does.
    """
    x = steps.to(torch.bfloat16)
    tall = x.shape[-2] > x.shape[-1]
    if tall:
        x = x.mT
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + MUON_EPS)
    for a, b, c in MUON_COEFFICIENTS:
        gram = _product(x, x.mT)
        polynomial = b * gram + _product(c * gram, gram)
        x = a * x + _product(polynomial, x)
    result: Tensor = (x.mT if tall else x).to(steps.dtype)
    return result


def _product(x: Tensor, y: Tensor) -> Tensor:
    """Multiply in fp32 and round once."""
    return (x.float() @ y.float()).to(x.dtype)
