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
    prefix_length: Tensor | None = None,
    tail_mask: Tensor | None = None,
) -> Tensor:
    """Attend from every query to a shared prefix and to the row's own tail.

    Causality in the tail is up to its mask: without one, every query sees all of the tail.

    Args:
        q: [B, H, N, D], the N queries of each key head: those of all query heads that share it.
        k, v: [B, H, S, D], keys and values of each row's own tail.
        prefix_k, prefix_v: [R, H, P, D], keys and values of the prefixes, B a multiple of R: rows
            r B/R … (r + 1) B/R - 1 share prefix r.
        scale: factor on the scores.
        prefix_length: [B], how many tokens of its prefix a row sees, 0 to P; None: all.
        tail_mask: [N, S] in q's dtype, added to the tail's scores. Every query sees some of it.

    Returns:
        [B, H, N, D].
    """
    (B, _, _, _), (R, _, P, _) = q.shape, prefix_k.shape
    outputs = []
    for b in range(B):
        r, seen = b // (B // R), P if prefix_length is None else int(prefix_length[b])
        keys = torch.cat([prefix_k[r, :, :seen], k[b]], dim=1)  # [H, seen + S, D]
        values = torch.cat([prefix_v[r, :, :seen], v[b]], dim=1)
        scores = q[b] @ keys.mT * scale  # [H, N, seen + S]
        if tail_mask is not None:
            on_prefix, on_tail = scores.tensor_split([seen], dim=-1)
            scores = torch.cat([on_prefix, on_tail + tail_mask], dim=-1)
        outputs.append(scores.softmax(-1) @ values)
    return torch.stack(outputs)
