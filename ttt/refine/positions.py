"""Where to roll out: positions of high entropy, one a chunk (arXiv 2602.16704, section 3.1)."""

import torch
from torch import Tensor

from refine_server.kernels import dispatch
from refine_server.kernels.select_positions import smooth
from refine_server.ttt.interface.config import Selection

SPAN_POOL = 5
"""Tokens over which scores are averaged before spans are chosen."""


def select_positions(
    entropy: Tensor,
    surprise: Tensor,
    rule: Selection,
    *,
    chunks: int,
    kernel: int,
    generator: torch.Generator,
) -> Tensor:
    """One index in each of ``chunks`` equal chunks of every row.

    Args:
        entropy, surprise: [R, T], of the next token and of the document's own next token.
        rule: ``entropy`` and ``surprise`` sample from the softmax of the smoothed score (the
            Gumbel-max way), ``uniform`` samples evenly, ``argmax`` and ``argmin`` take the extreme
            of the smoothed entropy. ``query`` has chosen the rows; in them it is ``entropy``.
        chunks: c; each chunk has T // c tokens.
        kernel: of the average pool, k in the paper.
        generator: the only source of randomness.

    Returns:
        [R, chunks] indices into T, rising within a row.
    """
    R, T = entropy.shape
    scores = surprise if rule == "surprise" else entropy
    if rule == "argmax" or rule == "argmin":
        return dispatch.select_positions(scores, None, chunks=chunks, kernel=kernel, rule=rule)
    noise = torch.rand(R, chunks, T // chunks, generator=generator).to(scores.device)
    return dispatch.select_positions(
        scores,
        noise,
        chunks=chunks,
        kernel=kernel,
        rule="uniform" if rule == "uniform" else "sample",
    )


def select_spans(
    entropy: Tensor,
    surprise: Tensor,
    rule: Selection,
    *,
    count: int,
    length: int,
    generator: torch.Generator,
) -> list[int]:
    """Starts of the ``count`` best windows of ``length`` tokens that do not overlap, in order.

    Windows stand around the positions with the highest pooled score (lowest for ``argmin``, random
    for ``uniform``); fewer are returned when no more fit.

    Args:
        entropy, surprise: [T].
    """
    scores = smooth((surprise if rule == "surprise" else entropy)[None], SPAN_POOL)[0]
    if rule == "uniform":
        scores = torch.rand(scores.shape[0], generator=generator)
    order = scores.argsort(descending=rule != "argmin", stable=True).tolist()
    last = scores.shape[0] - length
    starts: list[int] = []
    for position in order:
        start = min(max(position - length // 2, 0), last)
        if all(abs(start - other) >= length for other in starts):
            starts.append(start)
        if len(starts) == count:
            break
    return sorted(starts)
