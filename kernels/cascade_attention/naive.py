"""Attention over prefix and tail in one softmax, row by row: the definition of the op."""

import torch
from torch import Tensor


def cascade_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    prefix_k: Tensor,
    prefix_v: Tensor,
    scale: float,
    prefix_mask: Tensor | None = None,
    tail_mask: Tensor | None = None,
) -> Tensor:
    """Attend from every query to a shared prefix and to the row's own tail.

    Causality and windows are up to the masks: without one, every query sees all of the part.

    Args:
        q: [B, H, N, D], the N queries of each key head: those of all query heads that share it.
        k, v: [B, H, S, D], keys and values of each row's own tail.
        prefix_k, prefix_v: [R, H, P, D], keys and values of the prefixes, B a multiple of R: rows
            r B/R … (r + 1) B/R - 1 share prefix r.
        scale: factor on the scores.
        prefix_mask: [R, 1, B/R N, P] in q's dtype, added to the prefix's scores; row r holds the
            queries of all rows that share prefix r. Finite, because a query may see nothing of the
            prefix.
        tail_mask: [N, S] in q's dtype, added to the tail's scores. Every query sees some of it.

    Returns:
        [B, H, N, D].
    """
    (B, _, N, _), (R, _, P, _) = q.shape, prefix_k.shape
    shared = B // R  # rows that share a prefix
    outputs = []
    for b in range(B):
        r = b // shared
        keys = torch.cat([prefix_k[r], k[b]], dim=1)  # [H, P + S, D]
        values = torch.cat([prefix_v[r], v[b]], dim=1)
        scores = q[b] @ keys.mT * scale  # [H, N, P + S]
        on_prefix, on_tail = scores.tensor_split([P], dim=-1)
        if prefix_mask is not None:
            on_prefix = on_prefix + prefix_mask[r].view(shared, N, P)[b % shared]
        if tail_mask is not None:
            on_tail = on_tail + tail_mask
        outputs.append(torch.cat([on_prefix, on_tail], dim=-1).softmax(-1) @ values)
    return torch.stack(outputs)
