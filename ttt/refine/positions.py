"""Where to roll out: positions of high entropy, one a chunk (arXiv 2602.16704, section 3.1)."""

import torch
from torch import Tensor

from refine_server.kernels import dispatch
from refine_server.ttt.interface.config import Selection
from refine_server.ttt.refine.inputs.rows import TokenStats
from refine_server.ttt.refine.inputs.step_inputs import StepInputs


def select_starts(request: StepInputs, stats: TokenStats) -> Tensor:
    """Select where a request's rollouts start: [S, G], counted in its rows' ``input_ids``.

    Args:
        request: its generator decides.
        stats: of its S rows, under the policy that will be rolled out.
    """
    config, rows = request.config, request.rollout_rows
    positions = select_positions(
        stats.entropy,
        -stats.log_prob.detach(),
        config.rollouts.select,
        chunks=rows.positions,
        kernel=config.rollouts.tokens,
        generator=request.generator,
    )
    return rows.rollout_starts(positions, config.rollouts.tokens)


def select_positions(
    entropy: Tensor,
    surprise: Tensor,
    rule: Selection,
    *,
    chunks: int,
    kernel: int,
    generator: torch.Generator,
) -> Tensor:
    """Select one position in each of ``chunks`` equal chunks of every row.

    Args:
        entropy: [S, T], of the distribution that predicts each token.
        surprise: [S, T], minus the log-probability of each token.
        rule: ``entropy`` and ``surprise`` sample from the softmax of the smoothed score (by the
            Gumbel-max trick), ``uniform`` samples evenly, ``argmax`` and ``argmin`` take the
            extreme of the smoothed entropy.
        chunks: c; each chunk has T // c tokens.
        kernel: of the average pool that smooths the score: k in the paper.
        generator: the only source of randomness.

    Returns:
        [S, chunks] indices into T, rising within a row.
    """
    S, T = entropy.shape
    scores = surprise if rule == "surprise" else entropy
    if rule == "argmax" or rule == "argmin":
        return dispatch.select_positions(scores, None, chunks=chunks, kernel=kernel, rule=rule)
    noise = torch.rand(S, chunks, T // chunks, generator=generator).to(scores.device)
    return dispatch.select_positions(
        scores,
        noise,
        chunks=chunks,
        kernel=kernel,
        rule="uniform" if rule == "uniform" else "sample",
    )
