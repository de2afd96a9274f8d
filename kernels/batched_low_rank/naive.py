"""Projection plus low-rank delta, request by request: the definition of the op."""

import torch
from torch import Tensor


def batched_low_rank(
    x: Tensor,
    weight: Tensor,
    a: Tensor,
    b: Tensor,
    bias: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
) -> Tensor:
    """y = x W^T + bias + (x A) B, every request with its own A and B.

    Args:
        x: [..., in]; its rows, flattened, are the requests' rows one request after the other.
        weight: [out, in], shared.
        a: [R, in, rank].
        b: [R, rank, out].
        bias: [out], shared.
        cu_seqlens: [R + 1] integers, 0 first and the number of rows last: request r owns rows
            cu_seqlens[r] … cu_seqlens[r + 1] - 1, maybe none. None: all own equally many.

    Returns:
        [..., out].
    """
    rows = x.reshape(-1, x.shape[-1])
    y = rows @ weight.T if bias is None else rows @ weight.T + bias
    own = [r @ a_r @ b_r for r, a_r, b_r in zip(split(rows, a, cu_seqlens), a, b, strict=True)]
    return (y + torch.cat(own)).view(*x.shape[:-1], -1)


def split(rows: Tensor, a: Tensor, cu_seqlens: Tensor | None) -> tuple[Tensor, ...]:
    """The rows of each request."""
    R = a.shape[0]
    if cu_seqlens is None:
        return rows.view(R, rows.shape[0] // R, -1).unbind()
    parts: tuple[Tensor, ...] = rows.split(cu_seqlens.diff().tolist())
    return parts
