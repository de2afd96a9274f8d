"""The loss of one REFINE step, stage by stage (arXiv 2602.16704, section 3).

Shapes: R requests in a batch, S rows of T tokens each, G positions a row, P = R S G positions in
all, n rollouts a position, N = P n continuations (P (n + 1) with a reference rollout at each
position), k tokens in each, D features of a hidden state.

The forward is one batch; whatever is random, chosen or averaged is each request's own, so a
request's loss and gradient do not depend on the others in the batch. ``naive`` computes the same
gradient through the same stages, but reads every prefix again; a test compares the two.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from refine_server.kernels import dispatch
from refine_server.ttt.fast_weights import FastWeights
from refine_server.ttt.models.tape import Graph
from refine_server.ttt.pieces import Pieces, run_pieces
from refine_server.ttt.refine.inputs.row_batch import RequestTrunk, RowBatch
from refine_server.ttt.refine.inputs.step_inputs import StepInputs
from refine_server.ttt.refine.positions import select_starts
from refine_server.ttt.refine.rollouts import (
    Policy,
    Rollouts,
    base_log_prob,
    reward_rollouts,
    rollout_noise,
    sample_rollouts,
    score_rollouts,
)


@dataclass(frozen=True, kw_only=True, slots=True)
class StepLoss:
    """The loss of one step of one request, and what it was computed from."""

    total: Tensor
    """[], in the graph: the sum of the three terms below by their coefficients."""
    ntp: Tensor
    """[], the next-token cross-entropy in nats; NaN where nothing computes it."""
    grpo: Tensor
    """[], the policy-gradient surrogate; 0 without rollouts."""
    kl: Tensor
    """[], the KL divergence to the unadapted policy; 0 without that term."""
    attention: Tensor
    """[], the KL divergence of the question's attention from its target; 0 without that term."""
    group_rewards: Tensor
    """[S G, group], rewards of all continuations; [1, 1] of 0 without rollouts."""
    advantages: Tensor
    """The same shape, how much better each of them is than its group."""
    entropy: Tensor
    """[S, T - first], the entropies that positions were selected by."""
    rollouts: Rollouts | None
    """The rollouts of this step, or None without any."""
    ntp_trunk: RequestTrunk | None
    """The forward over the rows that the next-token loss read; None if there is no such loss."""

    @property
    def rewards(self) -> Tensor:
        """Rewards of the sampled rollouts: [S G, n], or [1, 1] of 0 without rollouts."""
        sampled = 1 if self.rollouts is None else self.rollouts.sampled
        return self.group_rewards[:, :sampled]

    @property
    def rollout_tokens(self) -> int:
        """How many tokens were sampled in all."""
        return 0 if self.rollouts is None else self.rewards.numel() * self.rollouts.tokens.shape[1]


def step_losses(requests: Sequence[StepInputs]) -> list[StepLoss]:
    """Compute the loss of one step for each request, with newly sampled positions and rollouts.

    Args:
        requests: R requests whose steps have one ``shape``.

    Returns:
        The losses in the requests' order. Each has a graph to its own request's fast weights; the
        graphs share their trunk, so one backward pass serves all of them.
    """
    return run_pieces(losses_in_pieces(requests, Graph()))


def losses_in_pieces(requests: Sequence[StepInputs], graph: Graph) -> Pieces[list[StepLoss]]:
    """Compute ``step_losses`` in pieces, in parts of a graph.

    The gradients of the last part are those of the losses' sum; the graph's backward pass hands
    them on to the requests' fast weights.
    """
    R, shape = len(requests), requests[0].shape
    if shape.objective == "attention":
        return [_attention_loss(request, graph) for request in requests]
    own_fast, dtype = [r.fast for r in requests], requests[0].model.dtype
    fast = graph.cut(lambda: FastWeights.stack(own_fast).to_dtype(dtype))  # [R, ...] each

    # Trunk: one differentiable forward over the rows of all requests, hidden [R S, T, D].
    ntp_trunk = yield from RowBatch([r.ntp_rows for r in requests]).forward(fast, graph)
    yield
    yield from ntp_trunk.read_token_stats(graph)
    yield
    if shape.objective == "ntp":
        pairs = zip(requests, ntp_trunk.requests(), strict=True)
        return [_ntp_loss(request, own, graph) for request, own in pairs]
    trunk = ntp_trunk
    if not shape.one_trunk:
        trunk = yield from RowBatch([r.rollout_rows for r in requests]).forward(fast, graph)
        yield

    # Token statistics: log-probabilities and entropies, [S, T - first] of each request.
    stats = yield from trunk.read_token_stats(graph)

    # Positions (section 3.1): one of high entropy in every chunk, and the prefix that ends there.
    own_starts = [select_starts(r, s) for r, s in zip(requests, stats, strict=True)]  # [S, G] each
    starts = torch.cat(own_starts)  # [R S, G]
    prefixes = graph.cut(lambda: trunk.prefixes(starts))  # hidden [P, D] and P states
    yield

    # Rollouts (section 3.2): n continuations of every prefix, sampled without graph: [N, k].
    policy = Policy(requests[0].model, fast, shape.temperature)
    noise = torch.cat([rollout_noise(r, s) for r, s in zip(requests, own_starts, strict=True)])
    references = trunk.continuations(starts, shape.rollout_tokens) if shape.reference else None
    rollouts = yield from sample_rollouts(policy, prefixes, starts, noise, references)
    yield

    # Log-probabilities: one forward over all rollouts, in the graph: [N, k], hidden [N, k, D].
    scores = yield from score_rollouts(policy, prefixes, rollouts, graph)
    yield

    losses = []
    parts = ntp_trunk.requests(), trunk.requests(), rollouts.split(R), scores.split(R)
    for request, ntp_own, own, own_rollouts, own_scores in zip(requests, *parts, strict=True):
        # Rewards and advantages (sections 3.3 and 3.4).
        rewards, advantages = reward_rollouts(request, own, own_rollouts, own_scores)  # [N / R]

        # Loss (section 3.4): policy gradient, KL to the unadapted policy, next-token loss.
        log_prob, old_log_prob = own_scores.log_prob, own_scores.old_log_prob  # [N / R, k]
        base = yield from base_log_prob(request, own_rollouts)  # [N / R, k]
        grpo, kl = dispatch.grpo_loss(log_prob, old_log_prob, advantages, base)  # [] each
        ntp, weights = ntp_own.token_stats.ntp_loss, request.config.loss  # []
        attention = _attention_term(request, graph)  # []
        total = weights.grpo * grpo + weights.ntp * ntp + weights.kl * kl
        losses.append(
            StepLoss(
                total=total + weights.attention * attention,
                ntp=ntp,
                grpo=grpo,
                kl=kl,
                attention=attention,
                group_rewards=rewards.view(-1, shape.group),
                advantages=advantages.view(-1, shape.group),
                entropy=own.token_stats.entropy,
                rollouts=own_rollouts,
                ntp_trunk=ntp_own,
            )
        )
    return losses


def _ntp_loss(request: StepInputs, trunk: RequestTrunk, graph: Graph) -> StepLoss:
    """Make the loss of a step without rollouts (``objective = ntp``)."""
    ntp, attention = trunk.token_stats.ntp_loss, _attention_term(request, graph)
    weights, zero = request.config.loss, ntp.new_zeros(())
    return StepLoss(
        total=weights.ntp * ntp + weights.attention * attention,
        ntp=ntp,
        grpo=zero,
        kl=zero,
        attention=attention,
        group_rewards=zero.view(1, 1),
        advantages=zero.view(1, 1),
        entropy=trunk.token_stats.entropy,
        rollouts=None,
        ntp_trunk=trunk,
    )


def _attention_loss(request: StepInputs, graph: Graph) -> StepLoss:
    """Make the loss of a step that reads the question alone (``objective = attention``)."""
    attention = _attention_term(request, graph)
    zero = attention.new_zeros(())
    return StepLoss(
        total=request.config.loss.attention * attention,
        ntp=zero.new_tensor(torch.nan),
        grpo=zero,
        kl=zero,
        attention=attention,
        group_rewards=zero.view(1, 1),
        advantages=zero.view(1, 1),
        entropy=zero.view(1, 1),
        rollouts=None,
        ntp_trunk=None,
    )


def _attention_term(request: StepInputs, graph: Graph) -> Tensor:
    """Compute the attention term of one request; 0 where the loss has none."""
    term = request.attention
    if term is None:
        return torch.zeros((), device=request.model.device)
    return graph.cut(lambda: term.loss(request.fast))
