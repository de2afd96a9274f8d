"""Low-rank delta for all requests in two batched products."""

from torch import Tensor


def low_rank(x: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """See ``naive.low_rank``: same arguments, same results."""
    N, T, _ = x.shape
    R = a.shape[0]
    y = x.reshape(R, N // R * T, -1) @ a @ b
    return y.view(N, T, -1)
