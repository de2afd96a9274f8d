"""What a step did, position by position, for those who study an adaptation."""

from refine_server.ttt.interface.reports import StepTrace, TracedPosition
from refine_server.ttt.refine.inputs.rows import Rows
from refine_server.ttt.refine.loss import StepLoss

MAX_TOKENS = 16_384
"""Tokens of rollouts in a step's trace after which no more positions are listed."""


def trace_of(rows: Rows, loss: StepLoss) -> StepTrace | None:
    """Describe the positions and rollouts of a step; None for a step without rollouts.

    Args:
        rows: the S rows that the rollouts started in.
        loss: of the step, computed on these rows.
    """
    rollouts = loss.rollouts
    if rollouts is None:
        return None
    starts = rollouts.starts  # [S, G]
    at = (starts - rows.first).clamp(0, loss.entropy.shape[1] - 1)
    entropies = loss.entropy.gather(1, at).flatten().tolist()  # P = S G of them
    tokens = rollouts.tokens.unflatten(0, (starts.numel(), rollouts.group))  # [P, group, k]
    listed = min(starts.numel(), -(-MAX_TOKENS // tokens[0].numel()))
    positions = zip(
        starts.flatten().tolist()[:listed],
        entropies,
        tokens[:listed].tolist(),
        loss.rewards[:listed].tolist(),  # [P, n]
        strict=False,
    )
    return StepTrace(
        positions=tuple(
            TracedPosition(
                row=number // starts.shape[1],
                token=start,
                entropy=entropy,
                rollouts=tuple(map(tuple, written)),
                rewards=tuple(rewards),
            )
            for number, (start, entropy, written, rewards) in enumerate(positions)
        ),
        left_out=starts.numel() - listed,
    )
