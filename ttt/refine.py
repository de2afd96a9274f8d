"""The REFINE loop: select, roll out, reward, advantage, loss, step (arXiv 2602.16704).

One differentiable reading of the document is the trunk; rollouts are branches that start from its
in-graph states, so the gradient equals that of re-reading every prefix (``naive`` does that, and a
test compares the two) at about the price of next-token prediction.
"""

import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from refine_server.kernels import dispatch
from refine_server.ttt import guard
from refine_server.ttt.config import AdaptConfig
from refine_server.ttt.fast_weights import BASE, FastWeights
from refine_server.ttt.models.base import CausalLM, Trunk
from refine_server.ttt.models.state import State
from refine_server.ttt.optimizers import FastWeightOptimizer
from refine_server.ttt.reading import (
    Reading,
    TokenStats,
    informative_spans,
    span_reading,
    too_short,
)
from refine_server.ttt.rollout import Rollouts, sample
from refine_server.ttt.selection import select_positions
from refine_server.ttt.types import AdaptationReport, StepReport


@dataclass(frozen=True)
class Adapted:
    """An adapted document: the request's fast weights and the state after reading it with them.

    hidden: [1, D], of the document's last token.
    """

    fast_weights: FastWeights
    state: State
    hidden: Tensor
    report: AdaptationReport


@dataclass(frozen=True)
class StepLoss:
    """One step's loss, in the graph, and what its rollouts were like.

    trunk: of the rows that the next-token loss read.
    """

    trunk: Trunk
    total: Tensor
    ntp: Tensor
    grpo: Tensor
    kl: Tensor
    rewards: Tensor
    entropy: Tensor
    rollout_tokens: int


def adapt(
    model: CausalLM,
    document: Reading,
    fast: FastWeights,
    config: AdaptConfig,
    should_stop: Callable[[], str | None] = lambda: None,
) -> Generator[StepReport, None, Adapted]:
    """Adapt ``fast`` on a document in place; yield after every step, return the adapted document.

    With a guard the answer comes from the step that did best on the held-out spans, without one
    from the last. The caller may close the generator between steps: nothing outside ``fast``
    was changed. ``should_stop`` is asked after every step and gives the reason to make no more.
    """
    if config.objective == "none" or config.steps == 0:
        return _unadapted(document, config)
    if too_short(document, config):
        return _unadapted(document, config, guard.DOCUMENT_TOO_SHORT)
    loop = Loop(model, document, fast, config)
    if config.guard == "held_out" and loop.judge is None:
        return _unadapted(document, config, guard.DOCUMENT_TOO_SHORT)
    started = time.monotonic()
    steps: list[StepReport] = []
    stopped = None
    while len(steps) < config.steps and stopped is None:
        report, reason = loop.step(len(steps) + 1)
        steps.append(report)
        if reason is not None:
            return _unadapted(document, config, reason, steps)
        yield report
        if len(steps) < config.steps:
            late = config.max_seconds and time.monotonic() - started >= config.max_seconds
            stopped = "max_seconds" if late else should_stop()
    return loop.end(steps, stopped)


class Loop:
    """What stays from step to step: the readings, the optimiser and the random numbers."""

    def __init__(
        self, model: CausalLM, document: Reading, fast: FastWeights, config: AdaptConfig
    ) -> None:
        self.model, self.config = model, config
        self.fast = fast.requires_grad_()
        self.generator = torch.Generator().manual_seed(config.seed)
        self.optimizer = FastWeightOptimizer(config, fast)
        local = config.prefix == "local"
        spans = informative_spans(document, config, self.generator) if local else []
        self.judge = self._hold_out(document, spans) if config.guard == "held_out" else None
        rows = span_reading(document, spans, fast) if local else document
        self.document, self.rollout_reading = document, rows
        self.ntp_reading = document if config.ntp_on == "document" else rows

    def _hold_out(self, document: Reading, spans: Sequence[guard.Span]) -> guard.Judge | None:
        """Keep spans of the document out of the loss; None if there is no room for any."""
        document.hold_out(spans, self.config.rollout_tokens, self.config.seed)
        if not document.held_out:
            return None
        return guard.Judge(self.model, document.input_ids, document.held_out, self.fast)

    def step(self, number: int) -> tuple[StepReport, str | None]:
        """One optimiser step. A reason instead of None means that no update was made."""
        started = time.monotonic()
        loss = self.loss()
        if (number - 1) % -(-self.config.steps // guard.MAX_JUDGEMENTS) == 0:
            self._judge(number - 1, loss.trunk)
        self.optimizer.zero_grad()
        loss.total.backward()
        grad_norm = float(self.optimizer.step(loss.total.detach().isfinite()))
        reason = guard.reject_step(float(loss.total.detach()), grad_norm)
        return _report(number, loss, grad_norm, time.monotonic() - started), reason

    def loss(self) -> StepLoss:
        """The loss under the present fast weights, with positions and rollouts drawn anew."""
        config, ntp_rows, rows = self.config, self.ntp_reading, self.rollout_reading
        trunk = ntp_rows.trunk(self.fast)
        stats = ntp_rows.stats(trunk.hidden, self.fast)
        if config.objective == "ntp":
            zero = stats.log_prob.new_zeros(())
            total = config.ntp_coef * stats.loss
            return StepLoss(trunk, total, stats.loss, zero, zero, zero[None], stats.entropy, 0)
        ntp, ntp_trunk = stats.loss, trunk
        if rows is not ntp_rows:
            trunk = rows.trunk(self.fast)
            stats = rows.stats(trunk.hidden, self.fast)
        grpo, kl, reward, tokens = self._rollout_terms(rows, trunk, stats)
        total = config.grpo_coef * grpo + config.ntp_coef * ntp + config.kl_coef * kl
        return StepLoss(ntp_trunk, total, ntp, grpo, kl, reward, stats.entropy, tokens)

    def _rollout_terms(
        self, rows: Reading, trunk: Trunk, stats: TokenStats
    ) -> tuple[Tensor, Tensor, Tensor, int]:
        """GRPO loss, KL, rewards [N] and sampled tokens, from branches of the trunk."""
        config, model, n = self.config, self.model, self.config.rollouts
        starts, noise = draw(rows, stats, config, self.generator)
        state = trunk.state_at(starts).repeat(n)
        before = _before(trunk, starts).repeat_interleave(n, 0)  # [N, D]
        temperature = config.rollout_temperature
        rollouts = sample(model, before, state.detach(), self.fast, noise, temperature)
        branch, log_prob = branch_log_prob(model, before, state, rollouts, self.fast, temperature)
        reward, advantages = dispatch.rollout_reward(
            config.reward, rollouts.tokens, branch, rows.input_ids, trunk.hidden, starts
        )
        base_log_prob = None
        if config.kl_coef:
            with torch.no_grad():
                base = rows.base.state_at(starts).repeat(n)
                base_before = _before(rows.base, starts).repeat_interleave(n, 0)
                _, base_log_prob = branch_log_prob(
                    model, base_before, base, rollouts, BASE, temperature
                )
        grpo, kl = dispatch.grpo_loss(
            log_prob, rollouts.old_log_prob, advantages, config.clip_ratio, base_log_prob
        )
        return grpo, kl, reward, rollouts.tokens.numel()

    @torch.no_grad()
    def _judge(self, step: int, trunk: Trunk) -> None:
        """Have the guard judge the present weights; ``trunk`` is the next-token loss's."""
        if self.judge is not None:
            is_document = self.ntp_reading is self.document
            self.judge.see(step, trunk if is_document else self.document.trunk(self.fast))

    @torch.no_grad()
    def end(self, steps: list[StepReport], stopped: str | None) -> Adapted:
        """Choose the weights that the answer will use and read the document with them."""
        rows = self.ntp_reading
        trunk = rows.trunk(self.fast)
        losses = [
            *(step.ntp_loss for step in steps),
            float(rows.stats(trunk.hidden, self.fast).loss),
        ]
        accepted = len(steps)
        reason = guard.reject_result(self.fast, losses[accepted])
        if self.judge is not None and reason is None:
            self._judge(accepted, trunk)
            accepted = self.judge.restore()
            reason = None if accepted else guard.KEPT_BASE
        used = self.fast if reason is None else BASE
        report = AdaptationReport(
            objective=self.config.objective,
            steps=tuple(steps),
            accepted_step=accepted if used else 0,
            guard=reason,
            stopped=stopped,
            first_ntp_loss=losses[0],
            final_ntp_loss=losses[accepted],
            fast_weight_bytes=used.nbytes,
            held_out=tuple(self.judge.judgements) if self.judge is not None else (),
        )
        return _ended(self.document, used, report)


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


def _before(trunk: Trunk, starts: Tensor) -> Tensor:
    """Hidden states of the tokens just before starts [R, G]: [R G, D]."""
    row = torch.arange(starts.shape[0], device=starts.device)[:, None]
    return trunk.hidden[row, starts - 1].flatten(0, 1)


def _report(number: int, loss: StepLoss, grad_norm: float, seconds: float) -> StepReport:
    spread = loss.rewards.std() if loss.rewards.numel() > 1 else loss.rewards.new_zeros(())
    return StepReport(
        step=number,
        loss=float(loss.total.detach()),
        ntp_loss=float(loss.ntp.detach()),
        grpo_loss=float(loss.grpo.detach()),
        reward_mean=float(loss.rewards.mean()),
        reward_std=float(spread),
        entropy_mean=float(loss.entropy.mean()),
        kl=float(loss.kl.detach()),
        grad_norm=grad_norm,
        seconds=seconds,
        rollout_tokens=loss.rollout_tokens,
    )


def _unadapted(
    document: Reading,
    config: AdaptConfig,
    reason: str | None = None,
    steps: Sequence[StepReport] = (),
) -> Adapted:
    """An adaptation that made no use of any step."""
    first = steps[0].ntp_loss if steps else None
    report = AdaptationReport(config.objective, tuple(steps), 0, reason, None, first, None, 0)
    return _ended(document, BASE, report)


def _ended(document: Reading, used: FastWeights, report: AdaptationReport) -> Adapted:
    """Read the document once with the weights that the answer will use."""
    hidden, state = document.end(used)
    return Adapted(used.detach(), state, hidden, report)
