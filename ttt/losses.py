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
from refine_server.ttt.config import AdaptConfig
from refine_server.ttt.fast_weights import BASE, FastWeights
from refine_server.ttt.models.base import CausalLM, Trunk
from refine_server.ttt.models.state import State
from refine_server.ttt.reading import Reading, Readings, TokenStats, TrunkPart
from refine_server.ttt.rollout import Rollouts, sample
from refine_server.ttt.selection import select_positions

if TYPE_CHECKING:
    from refine_server.ttt.refine import Loop


@dataclass(frozen=True)
class Drawn:
    """What was random in a step: rollout starts [R, G], and the rollouts' tokens [R G n, k]."""

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
        return 0 if self.drawn is None else self.drawn.tokens.numel()


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
    model, config, n = loops[0].model, loops[0].config, loops[0].config.rollouts
    drawn = [
        draw(loop.rollout_reading, s, loop.config, loop.generator)
        for loop, s in zip(loops, stats, strict=True)
    ]
    starts, noise = (torch.cat(parts) for parts in zip(*drawn, strict=True))
    state = trunk.state_at(starts).repeat(n)
    before = _before(trunk, starts).repeat_interleave(n, 0)  # [R N, D]
    temperature = config.rollout_temperature
    rollouts = sample(model, before, state.detach(), fast, noise, temperature)
    branch, log_prob = branch_log_prob(model, before, state, rollouts, fast, temperature)
    found, N = [], noise.shape[0] // len(loops)
    for r, (loop, (own_starts, _)) in enumerate(zip(loops, drawn, strict=True)):
        rows, branches = loop.rollout_reading, slice(r * N, (r + 1) * N)
        own = Rollouts(rollouts.tokens[branches], rollouts.old_log_prob[branches])
        hidden = trunk.hidden[readings.rows_of(r), : rows.input_ids.shape[1]]
        reward, advantages = dispatch.rollout_reward(
            loop.config.reward, own.tokens, branch[branches], rows.input_ids, hidden, own_starts
        )
        grpo, kl = dispatch.grpo_loss(
            log_prob[branches],
            own.old_log_prob,
            advantages,
            loop.config.clip_ratio,
            _base_log_prob(loop, own, own_starts),
        )
        coef = loop.config
        total = coef.grpo_coef * grpo + coef.ntp_coef * ntp[r] + coef.kl_coef * kl
        drawn_here = Drawn(own_starts, own.tokens)
        entropy = stats[r].entropy
        found.append(StepLoss(parts[r], total, ntp[r], grpo, kl, reward, entropy, drawn_here))
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


def branch_log_prob(
    model: CausalLM,
    before: Tensor,
    state: State,
    rollouts: Rollouts,
    fast: FastWeights,
    temperature: float,
) -> tuple[Tensor, Tensor]:
    """Read the rollouts from their states: hidden [N, k, D] and log-probabilities [N, k]."""
    hidden = model(rollouts.tokens, state, fast).hidden
    predicting = torch.cat([before[:, None], hidden[:, :-1]], dim=1)
    log_prob, _ = model.token_stats(predicting, rollouts.tokens, fast, temperature)
    return hidden, log_prob


@torch.no_grad()
def _base_log_prob(loop: "Loop", rollouts: Rollouts, starts: Tensor) -> Tensor | None:
    """Log-probabilities [N, k] under the unadapted policy, for the KL; None without one."""
    if not loop.config.kl_coef:
        return None
    base, n = loop.rollout_reading.base, loop.config.rollouts
    state = base.state_at(starts).repeat(n)
    before = _before(base, starts).repeat_interleave(n, 0)
    temperature = loop.config.rollout_temperature
    return branch_log_prob(loop.model, before, state, rollouts, BASE, temperature)[1]


def _before(trunk: Trunk, starts: Tensor) -> Tensor:
    """Hidden states of the tokens just before starts [R, G]: [R G, D]."""
    row = torch.arange(starts.shape[0], device=starts.device)[:, None]
    return trunk.hidden[row, starts - 1].flatten(0, 1)
