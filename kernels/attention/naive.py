"""Attention over prefix and tail, branch by branch, nothing shared: the definition of the op."""

import torch
from torch import Tensor


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
    """Attend causally from the last T tokens of every branch.

    Branch b consists of the first prefix_length[b] tokens of the shared prefix and then S tokens of
    its own, the last T of which are the queries.

    Args:
        q: [B, Hq, T, D].
        k, v: [B, H, S, D] and [B, H, S, V], S >= T, Hq a multiple of H (grouped queries).
        prefix_k, prefix_v: [R, H, P, D] and [R, H, P, V], B a multiple of R: branches r B/R …
            (r + 1) B/R - 1 share row r. None: there is no prefix.
        prefix_length: [B], how many of the P prefix tokens each branch sees.
        scale: factor on the scores; None: 1/sqrt(D).
        window: how many tokens a query sees at most, itself included; None: all.

    Returns:
        [B, Hq, T, V].
    """
    B, Hq, T, D = q.shape
    H, S = k.shape[1:3]
    scale = D**-0.5 if scale is None else scale
    outputs = []
    for b in range(B):
        keys, values, before = k[b], v[b], 0
        if prefix_k is not None and prefix_v is not None and prefix_length is not None:
            row = b // (B // prefix_k.shape[0])
            before = int(prefix_length[b])
            keys = torch.cat([prefix_k[row, :, :before], keys], dim=1)
            values = torch.cat([prefix_v[row, :, :before], values], dim=1)
        keys, values = (x.repeat_interleave(Hq // H, dim=0) for x in (keys, values))
        at = before + S - T + torch.arange(T, device=q.device)[:, None]  # query positions
        behind = at - torch.arange(before + S, device=q.device)  # [T, before + S]
        seen = (behind >= 0) if window is None else (behind >= 0) & (behind < window)
        scores = (q[b] @ keys.mT * scale).masked_fill(~seen, -torch.inf)
        outputs.append(scores.softmax(-1) @ values)
    return torch.stack(outputs)
