"""The gradient of attention with respect to its queries alone."""

from itertools import product

import torch
from torch import Tensor

QUERIES, SCORES = 512, 512 * 512
"""The most queries, and the most scores of theirs, that are computed at once: they stay in the
cache."""


def query_gradient(
    grad: Tensor, q: Tensor, o: Tensor, lse: Tensor, k: Tensor, v: Tensor, scale: float
) -> Tensor:
    """Compute what some keys and values add to the gradient of queries that see all of them.

    With p = exp(q k^T scale - lse), the gradient of the scores is p (grad v^T - grad o^T). It takes
    three products; the gradients of k and v, for which the same scores are needed, take two more.

    Args:
        grad: [R, H, N, D], the gradient of the attention's output.
        q: [R, H, N, D].
        o: [R, H, N, D], the output, over these and any other keys.
        lse: [R, H, N, 1], the log-sum-exp of the scores on all of these keys.
        k, v: [R, H, P, D].
        scale: factor on the scores.

    Returns:
        [R, H, N, D].
    """
    (R, H, N, _), P = q.shape, k.shape[2]
    delta, scaled, result = (grad * o).sum(-1, keepdim=True), q * scale, torch.zeros_like(q)
    keys_at_once = min(max(1, SCORES // min(QUERIES, N)), P)
    scratch = q.new_empty(2, min(QUERIES, N) * keys_at_once)
    for r, h, first in product(range(R), range(H), range(0, N, QUERIES)):
        block = (r, h, slice(first, first + QUERIES))
        own_q, own_grad, own_lse, own_delta = (x[block] for x in (scaled, grad, lse, delta))
        for start in range(0, P, keys_at_once):
            keys, values = (x[r, h, start : start + keys_at_once] for x in (k, v))
            n, m = len(own_q), len(keys)
            p, to_scores = scratch[:, : n * m].view(2, n, m)
            torch.mm(own_q, keys.T, out=p).sub_(own_lse).exp_()
            torch.mm(own_grad, values.T, out=to_scores).sub_(own_delta).mul_(p)
            result[block].addmm_(to_scores, keys)
    return result.mul_(scale)
