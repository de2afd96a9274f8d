"""The loss of one step: next-token loss on the rows read, GRPO and KL on branches of the trunk.

It is computed for any number of requests at once. Reading is one batch; what is random, chosen or
averaged is each request's own, so its loss and gradient do not depend on who else is in the batch.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from refine_server.kernels import dispatch
from refine_server.ttt.fast_weights import BASE, FastWeights
from refine_server.ttt.interface.config import AdaptConfig
from refine_server.ttt.models.base import CausalLM
from refine_server.ttt.models.state import State
from refine_server.ttt.models.trunk import Trunk
from refine_server.ttt.refine.positions import select_positions
from refine_server.ttt.refine.rollouts import beside, sample
from refine_server.ttt.refine.rows import Reading, Readings, TokenStats, TrunkPart

if TYPE_CHECKING:
    from refine_server.ttt.refine.loop import Loop


@dataclass(frozen=True)
class Drawn:
    """What was random in a step: rollout starts [R, G], and the branches' tokens [N, k]."""

    starts: Tensor
    tokens: Tensor


@dataclass(frozen=True)
class StepLoss:
    """One step's loss, in the graph, and what its rollouts were like.

    trunk: of the rows that the next-token loss read. drawn: None where there are no rollouts.
    """

    trunk: TrunkPart
    total: Tensor
    ntp: Tensor
    grpo: Tensor
    kl: Tensor
    rewards: Tensor
    entropy: Tensor
    drawn: Drawn | None

    @property
    def rollout_tokens(self) -> int:
        """How many tokens the rollouts have in all."""
        return 0 if self.drawn is None else self.rewards.numel() * self.drawn.tokens.shape[1]


@dataclass(frozen=True)
class Branches:
    """N continuations of k tokens: n rollouts of every position, then its demonstration if any.

    tokens: [N, k]. hidden: [N, k, D]. log_prob: [N, k], in the graph. old_log_prob: [N, k], under
    the policy that sampled; a demonstration counts as its own, so its ratio is 1.
    """

    tokens: Tensor
    hidden: Tensor
    log_prob: Tensor
    old_log_prob: Tensor

    def split(self, requests: int) -> list["Branches"]:
        """Those of every request."""
        fields = self.tokens, self.hidden, self.log_prob, self.old_log_prob
        return [Branches(*own) for own in zip(*(f.chunk(requests) for f in fields), strict=True)]


def losses(loops: Sequence["Loop"]) -> list[StepLoss]:
    """The loops' losses under their present fast weights, positions and rollouts drawn anew.

    All is read as one batch; what is random, chosen or averaged is each request's own.
    """
    fast = FastWeights.stack([loop.fast for loop in loops])
    rows = Readings([loop.ntp_reading for loop in loops])
    trunk = rows.trunk(fast)
    stats = rows.stats(trunk.hidden, fast)
    parts = rows.parts(trunk)
    if loops[0].config.objective == "ntp":
        zero = stats[0].log_prob.new_zeros(())
        return [
            StepLoss(
                trunk=part,
                total=loop.config.ntp_coef * s.loss,
                ntp=s.loss,
                grpo=zero,
                kl=zero,
                rewards=zero[None],
                entropy=s.entropy,
                drawn=None,
            )
            for loop, part, s in zip(loops, parts, stats, strict=True)
        ]
    ntp = [s.loss for s in stats]
    if loops[0].rollout_reading is not loops[0].ntp_reading:
        rows = Readings([loop.rollout_reading for loop in loops])
        trunk = rows.trunk(fast)
        stats = rows.stats(trunk.hidden, fast)
    return _with_rollouts(loops, rows, trunk, stats, ntp, parts, fast)


def _with_rollouts(
    loops: Sequence["Loop"],
    readings: Readings,
    trunk: Trunk,
    stats: list[TokenStats],
    ntp: list[Tensor],
    parts: list[TrunkPart],
    fast: FastWeights,
) -> list[StepLoss]:
    """Losses whose GRPO and KL terms come from branches of the trunk, N of each request."""
    config = loops[0].config
    drawn = [
        draw(loop.rollout_reading, s, loop.config, loop.generator)
        for loop, s in zip(loops, stats, strict=True)
    ]
    starts, noise = (torch.cat(parts) for parts in zip(*drawn, strict=True))
    shown = None
    if config.demonstration:
        k = config.rollout_tokens
        rows = [loop.rollout_reading for loop in loops]
        shown = torch.cat([r.continuations(s, k) for r, (s, _) in zip(rows, drawn, strict=True)])
    branches = branch_off(loops[0].model, trunk, starts, noise, shown, fast, config)
    found = []
    for r, (loop, own) in enumerate(zip(loops, branches.split(len(loops)), strict=True)):
        ids, own_starts = loop.rollout_reading.input_ids, drawn[r][0]
        hidden = trunk.hidden[readings.rows_of(r), : ids.shape[1]]
        reward, advantages = dispatch.rollout_reward(
            loop.config.reward, own.tokens, own.hidden, ids, hidden, own_starts
        )
        grpo, kl = dispatch.grpo_loss(
            own.log_prob,
            own.old_log_prob,
            advantages,
            _base_log_prob(loop, own.tokens, own_starts),
        )
        coef = loop.config
        total = coef.grpo_coef * grpo + coef.ntp_coef * ntp[r] + coef.kl_coef * kl
        earned = reward.view(-1, config.group)[:, : config.rollouts]  # not the demonstration's
        drawn_here = Drawn(own_starts, own.tokens)
        entropy = stats[r].entropy
        found.append(StepLoss(parts[r], total, ntp[r], grpo, kl, earned, entropy, drawn_here))
    return found


def draw(
    rows: Reading, stats: TokenStats, config: AdaptConfig, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Rollout starts [R, G] and the noise [R G n, k] that decides the rollouts' tokens."""
    index = select_positions(
        stats.entropy,
        -stats.log_prob.detach(),
        config.selection,
        chunks=min(rows.positions, rows.tokens_learned),
        kernel=config.rollout_tokens,
        generator=generator,
    )
    starts = rows.starts(index, config.rollout_tokens)
    count = starts.numel() * config.rollouts
    noise = torch.rand(count, config.rollout_tokens, generator=generator, dtype=torch.float64)
    return starts, noise.to(starts.device)


def branch_off(
    model: CausalLM,
    trunk: Trunk,
    starts: Tensor,
    noise: Tensor,
    shown: Tensor | None,
    fast: FastWeights,
    config: AdaptConfig,
) -> Branches:
    """Sample rollouts from the trunk and read them, and the demonstrations, from its states.

    Args:
        starts: [R, G]. noise: [R G n, k]. shown: [R G, k], demonstrations, or None.
    """
    n, temperature = config.rollouts, config.rollout_temperature
    at, before = trunk.state_at(starts), _before(trunk, starts)
    first = before.repeat_interleave(n, 0)
    rollouts = sample(model, first, at.detach().repeat(n), fast, noise, temperature)
    tokens, old = rollouts.tokens, rollouts.old_log_prob
    if shown is not None:
        tokens = beside(tokens, shown)
    first, state = before.repeat_interleave(config.group, 0), at.repeat(config.group)
    hidden, log_prob = branch_log_prob(model, first, state, tokens, fast, temperature)
    if shown is not None:
        old = beside(old, log_prob.detach()[n :: config.group])
    return Branches(tokens, hidden, log_prob, old)


def branch_log_prob(
    model: CausalLM,
    before: Tensor,
    state: State,
    tokens: Tensor,
    fast: FastWeights,
    temperature: float,
) -> tuple[Tensor, Tensor]:
    """Read branches [N, k] from their states: hidden [N, k, D] and log-probabilities [N, k]."""
    hidden = model(tokens, state, fast).hidden
    predicting = torch.cat([before[:, None], hidden[:, :-1]], dim=1)
    log_prob, _ = model.token_stats(predicting, tokens, fast, temperature)
    return hidden, log_prob


@torch.no_grad()
def _base_log_prob(loop: "Loop", tokens: Tensor, starts: Tensor) -> Tensor | None:
    """Log-probabilities [N, k] under the unadapted policy, for the KL; None without one."""
    if not loop.config.kl_coef:
        return None
    base, n = loop.rollout_reading.base, loop.config.group
    state = base.state_at(starts).repeat(n)
    before = _before(base, starts).repeat_interleave(n, 0)
    temperature = loop.config.rollout_temperature
    return branch_log_prob(loop.model, before, state, tokens, BASE, temperature)[1]


def _before(trunk: Trunk, starts: Tensor) -> Tensor:
    """Hidden states of the tokens just before starts [R, G]: [R G, D]."""
    row = torch.arange(starts.shape[0], device=starts.device)[:, None]
    return trunk.hidden[row, starts - 1].flatten(0, 1)
