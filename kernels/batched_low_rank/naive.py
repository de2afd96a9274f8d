"""Projection plus LoRA, request by request: the definition of the op."""

import torch
from torch import Tensor


def batched_low_rank(
    x: Tensor, weight: Tensor, a: Tensor, b: Tensor, bias: Tensor | None = None
) -> Tensor:
    """Compute y = x W^T + bias + (x A) B, where every request has its own A and B.

    Args:
        x: [..., in]. Its rows, flattened, belong to the requests in order, the same number of rows
            to each.
        weight: [out, in], the W that all requests share.
        a: [R, in, rank], the A of each of the R requests.
        b: [R, rank, out], the B of each request.
        bias: [out], shared; None: no bias.

    Returns:
        [..., out].
    """
    rows = x.reshape(a.shape[0], -1, x.shape[-1])  # [R, n, in]
    y = rows @ weight.T if bias is None else rows @ weight.T + bias
    lora = [x_r @ a_r @ b_r for x_r, a_r, b_r in zip(rows, a, b, strict=True)]
    return (y + torch.stack(lora)).view(*x.shape[:-1], -1)
