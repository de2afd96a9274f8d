"""The REFINE step as the paper's code computes it: every rollout reads its prefix from token 0.

It is what ``loss`` is compared with: the gradients must be the same, and a benchmark measures the
speed of both. The stages, and the functions that select positions and compute rewards and losses,
are those of ``loss``; but nothing branches off a trunk, so each stage reads whole prefixes.
"""

import torch
from torch import Tensor

from refine_server.kernels import dispatch
from refine_server.ttt.pieces import run_pieces
from refine_server.ttt.refine.inputs.rows import Prefix, continuations
from refine_server.ttt.refine.inputs.step_inputs import StepInputs
from refine_server.ttt.refine.positions import select_starts
from refine_server.ttt.refine.rollouts import Policy, Rollouts, interleave, rollout_noise


def naive_gradient(
    request: StepInputs, rollouts: Rollouts | None = None
) -> tuple[dict[str, Tensor], Tensor]:
    """Compute the gradient of one request's REFINE loss with respect to its fast weights.

    With N rollouts it costs 1 forward over the document for the entropies, N over prefixes for the
    rollouts, N for the old log-probabilities, 1 forward and backward for the next-token loss, and N
    over prefixes for GRPO.

    Args:
        request: both terms read the same rows, and there is no KL term.
        rollouts: positions and tokens to take instead of those that are sampled here. Where many
            tokens are about equally likely, rounding alone makes two forwards sample different
            ones.

    Returns:
        The gradient by name, like the fast weights, and the rollouts' tokens [N, k].
    """
    rows, config, fast = request.rollout_rows, request.config, request.fast
    policy = Policy(request.model, fast, config.rollouts.temperature)

    # Trunk and token statistics: one forward over the document, for the entropies.
    with torch.no_grad():
        document_hidden = request.model(rows.input_ids, None, fast).hidden  # [S, T, D]
        stats = rows.token_stats(document_hidden, fast)  # [S, T - first]

    # Positions (section 3.1).
    starts = select_starts(request, stats)  # [S, G]
    noise = rollout_noise(request, starts)  # [S G n, k]
    if rollouts is not None:
        starts = rollouts.starts

    # Rollouts (section 3.2): every prefix is read again for each.
    prefixes = _prefixes(rows.input_ids, starts, config.rollouts.per_position)
    sampled = [_sample(policy, p, noise[i : i + 1]) for i, p in enumerate(prefixes)]
    tokens = torch.cat(sampled)  # [S G n, k]
    if config.rollouts.demonstration:
        references = continuations(rows.input_ids, starts, config.rollouts.tokens)
        tokens = interleave(tokens, references)  # [N, k]
    if rollouts is not None:
        tokens = rollouts.tokens

    # Log-probabilities under the sampling policy: every prefix is read again with its rollout.
    prefixes = _prefixes(rows.input_ids, starts, config.rollouts.group)
    with torch.no_grad():
        old = [_score(policy, p, t) for p, t in zip(prefixes, tokens, strict=True)]
    hidden = torch.cat([h for _, h in old])  # [N, k, D]

    # Rewards and advantages (sections 3.3 and 3.4).
    _, advantages = dispatch.rollout_reward(
        config.rollouts.reward, tokens, hidden, rows.input_ids, document_hidden, starts
    )  # [N]

    # Loss (section 3.4), one term after the other: only one forward's graph is alive at a time.
    for tensor in fast.parameters():
        tensor.grad = None
    ntp = rows.token_stats(request.model(rows.input_ids, None, fast).hidden, fast).ntp_loss
    (config.loss.ntp * ntp).backward()
    for i, prefix in enumerate(prefixes):
        log_prob, _ = _score(policy, prefix, tokens[i])  # [1, k]
        grpo, _ = dispatch.grpo_loss(log_prob, old[i][0], advantages[i : i + 1])
        (config.loss.grpo * grpo / len(prefixes)).backward()
    return {name: _grad(fast[name]) for name in fast}, tokens


def _prefixes(input_ids: Tensor, starts: Tensor, rollouts: int) -> list[Tensor]:
    """Cut the prefix [1, s] out of its row for each of so many rollouts at starts [S, G]."""
    return [
        input_ids[row : row + 1, : int(start)]
        for row, own in enumerate(starts)
        for start in own
        for _ in range(rollouts)
    ]


@torch.no_grad()
def _sample(policy: Policy, prefix: Tensor, noise: Tensor) -> Tensor:
    """Read a prefix [1, s] from token 0 and continue it: noise [1, k] -> tokens [1, k]."""
    read = policy.model(prefix, None, policy.fast)
    return run_pieces(policy.sample(Prefix(read.hidden[:, -1], read.state), noise))


def _score(policy: Policy, prefix: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Read a prefix [1, s] and its rollout [k] from token 0.

    Returns:
        Log-probabilities [1, k] and hidden states [1, k, D] of the rollout's tokens.
    """
    k = tokens.shape[0]
    hidden = policy.model(torch.cat([prefix, tokens[None]], dim=1), None, policy.fast).hidden
    log_prob, _ = policy.model.token_stats(
        hidden[:, -k - 1 : -1], tokens[None], policy.fast, policy.temperature
    )
    return log_prob, hidden[:, -k:]


def _grad(tensor: Tensor) -> Tensor:
    return torch.zeros_like(tensor) if tensor.grad is None else tensor.grad.clone()
