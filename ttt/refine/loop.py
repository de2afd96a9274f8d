"""The REFINE loop: select, roll out, reward, advantage, loss, step (arXiv 2602.16704).

One differentiable reading of the document is the trunk; rollouts are branches that start from its
in-graph states, so the gradient equals that of re-reading every prefix (``naive`` does that, and a
test compares the two) at about the price of next-token prediction.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple, Self

import torch
from torch import Tensor

from refine_server.ttt.batching import Call, Operation
from refine_server.ttt.fast_weights import BASE, FastWeights
from refine_server.ttt.interface.config import AdaptConfig
from refine_server.ttt.interface.reports import AdaptationReport, StepReport
from refine_server.ttt.models.base import CausalLM
from refine_server.ttt.models.state import State
from refine_server.ttt.refine import held_out
from refine_server.ttt.refine.loss import StepLoss, losses
from refine_server.ttt.refine.optimizer import FastWeightOptimizer
from refine_server.ttt.refine.rows import (
    Asked,
    Reading,
    TrunkPart,
    answer_reading,
    informative_spans,
    span_reading,
    too_short,
)


@dataclass(frozen=True)
class Adapted:
    """An adapted document: the request's fast weights and the state after reading it with them.

    hidden: [1, D], of the document's last token.
    """

    fast_weights: FastWeights
    state: State
    hidden: Tensor
    report: AdaptationReport


async def adapt(
    model: CausalLM,
    document: Reading,
    fast: FastWeights,
    config: AdaptConfig,
    *,
    on_step: Callable[[StepReport], None] = lambda report: None,
    should_stop: Callable[[], str | None] = lambda: None,
    asked: Asked | None = None,
) -> Adapted:
    """Adapt ``fast`` to a document in place and return the adapted document.

    With a guard the answer comes from the step that did best on the held-out spans, and no step is
    made after several that did no better; without one it comes from the last step. The program may
    be closed between steps: nothing outside ``fast`` was changed.

    Args:
        model: the base model; its weights are not written.
        document: the document's tokens, with the layers below all fast weights computed.
        fast: the request's own copy of the fast weights.
        config: the settings of the adaptation.
        on_step: called with the report of every step.
        should_stop: called after every step; returns the reason to make no more steps, or None.
        asked: the query by which spans are chosen, if they are.
    """

    async def unadapted(reason: str | None = None, steps: Sequence[StepReport] = ()) -> Adapted:
        end = Call(lambda: _unadapted(document, config, reason, steps), model.threads)
        return await end

    if config.objective == "none" or config.steps == 0:
        return await unadapted()
    if too_short(document, config):
        return await unadapted(held_out.DOCUMENT_TOO_SHORT)
    loop = await Call(lambda: Loop(model, document, fast, config, asked), model.threads)
    if config.prefix == "local" and not loop.spans:
        return await unadapted(held_out.NOTHING_SIMILAR)
    if config.guard == "held_out" and loop.judge is None:
        return await unadapted(held_out.DOCUMENT_TOO_SHORT)
    started = time.monotonic()
    steps: list[StepReport] = []
    stopped = None
    while len(steps) < config.steps and stopped is None:
        report, reason = await AdaptStep(loop, len(steps) + 1)
        if report is None:
            stopped = reason
            break
        steps.append(report)
        if reason is not None:
            return await unadapted(reason, steps)
        on_step(report)
        if len(steps) < config.steps:
            late = config.max_seconds and time.monotonic() - started >= config.max_seconds
            stopped = "max_seconds" if late else should_stop()
    end = Call(lambda: loop.end(steps, stopped), model.threads)
    return await end


class Loop:
    """What stays from step to step: the readings, the optimiser and the random numbers."""

    def __init__(
        self,
        model: CausalLM,
        document: Reading,
        fast: FastWeights,
        config: AdaptConfig,
        asked: Asked | None = None,
    ) -> None:
        self.model, self.config = model, config
        self.fast = fast.requires_grad_()
        self.generator = torch.Generator().manual_seed(config.seed)
        self.optimizer = FastWeightOptimizer(config, fast)
        local = config.prefix == "local"
        self.spans = informative_spans(document, config, self.generator, asked) if local else []
        self.judge = self._hold_out(document) if config.guard == "held_out" else None
        rows = self._rows(document, asked) if self.spans else document
        self.document, self.rollout_reading = document, rows
        self.ntp_reading = document if config.ntp_on == "document" else rows

    def _rows(self, document: Reading, asked: Asked | None) -> Reading:
        """What is stepped on instead of the document."""
        spans_as = self.config.spans_as
        if spans_as != "text" and asked is not None:
            in_context = spans_as == "answer_in_context"
            return answer_reading(document, self.spans, self.fast, asked, in_context)
        return span_reading(document, self.spans, self.fast)

    def _hold_out(self, document: Reading) -> held_out.Judge | None:
        """Keep spans of the document out of the loss; None if there is no room for any."""
        document.hold_out(self.spans, self.config.rollout_tokens, self.config.seed)
        if not document.held_out:
            return None
        return held_out.Judge(self.model, document.input_ids, document.held_out, self.fast)

    def step(self, number: int) -> "Outcome":
        """One optimiser step, and why it was not made if it was not."""
        outcome: Outcome | Exception
        [outcome] = AdaptStep.run_batch([AdaptStep(self, number)])
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    def loss(self) -> StepLoss:
        """The loss under the present fast weights, with positions and rollouts drawn anew."""
        return losses([self])[0]

    def is_due(self, number: int) -> bool:
        """Whether the guard is to judge the present weights before step ``number`` is made."""
        every = -(-self.config.steps // held_out.MAX_JUDGEMENTS)
        return self.judge is not None and (number - 1) % every == 0

    def update(self, number: int, loss: StepLoss, seconds: float) -> "Outcome":
        """Make the step that the gradient asks for, which took so many seconds to compute."""
        started = time.monotonic()
        grad_norm = float(self.optimizer.step(loss.total.detach().isfinite()))
        reason = held_out.reject_step(float(loss.total.detach()), grad_norm)
        seconds += time.monotonic() - started
        return Outcome(_report(number, loss, grad_norm, seconds), reason)

    @torch.no_grad()
    def look(self, step: int, trunk: TrunkPart) -> None:
        """Have the present weights judged; ``trunk`` is the next-token loss's under them."""
        if self.judge is None:
            return
        if self.ntp_reading is not self.document:
            trunk = TrunkPart.whole(self.document.trunk(self.fast))
        self.judge.see(step, trunk.hidden, trunk.end())

    @torch.no_grad()
    def end(self, steps: list[StepReport], stopped: str | None) -> Adapted:
        """Choose the weights that the answer will use and read the document with them."""
        losses = [step.ntp_loss for step in steps]
        rows, accepted, end = self.ntp_reading, len(steps), None
        reason = held_out.reject_weights(self.fast)
        if stopped != held_out.NO_IMPROVEMENT and reason is None:
            trunk = rows.trunk(self.fast)
            losses.append(float(rows.stats(trunk.hidden, self.fast).loss))
            reason = held_out.reject_loss(losses[-1])
            if rows is self.document:
                end = trunk.hidden[:, -1], trunk.state
            if reason is None:
                self.look(accepted, TrunkPart.whole(trunk))
        if self.judge is not None and reason is None:
            accepted = self.judge.restore()
            reason = None if accepted else held_out.KEPT_BASE
        used = self.fast if reason is None else BASE
        accepted = accepted if used else 0
        if end is None or accepted < len(steps):
            end = self.document.end(used)  # it was read with other weights, or only in spans
        report = AdaptationReport(
            objective=self.config.objective,
            steps=tuple(steps),
            accepted_step=accepted,
            guard=reason,
            stopped=stopped,
            first_ntp_loss=losses[0],
            final_ntp_loss=losses[accepted],
            fast_weight_bytes=used.nbytes,
            held_out=tuple(self.judge.judgements) if self.judge is not None else (),
        )
        return _ended(end, used, report)


class Outcome(NamedTuple):
    """A step's report, and why it was not made: None if it was.

    There is no report of a step that was not even tried.
    """

    report: StepReport | None
    reason: str | None = None


MOST_TOKENS = 4096
"""Tokens, padding included, that one thread steps on at once; more gain nothing and take memory."""
LONGEST_TO_SHORTEST = 1.25
"""How much longer than another a document may be: the rest is padding, computed for nothing."""
SHAPE = (
    *("objective", "prefix", "ntp_on", "span_tokens", "targets", "rank"),
    *("chunks", "rollouts", "rollout_tokens", "rollout_temperature", "demonstration"),
)
"""Fields that steps of one batch share. All others, such as the seed, are each request's own."""


@dataclass(frozen=True)
class AdaptStep(Operation["Outcome"]):
    """One optimiser step, if the guard finds it worth making; the result is an ``Outcome``."""

    name: ClassVar[str] = "adapt"
    waits_for_peers: ClassVar[bool] = True
    loop: Loop
    number: int

    @property
    def max_batch_size(self) -> int:
        """See ``Operation.max_batch_size``; full copies share no matrix product."""
        loop = self.loop
        if not loop.model.stacks_states or loop.config.targets == "all":
            return self.threads
        return self.threads * max(1, int(MOST_TOKENS / LONGEST_TO_SHORTEST) // self._tokens)

    @property
    def threads(self) -> int:
        """See ``Operation.threads``."""
        return self.loop.model.threads

    @property
    def _tokens(self) -> int:
        return self.loop.ntp_reading.input_ids.numel()

    @property
    def _shape(self) -> tuple[object, ...]:
        rows = self.loop.rollout_reading
        starts = rows.input_ids.shape[0], min(rows.positions, rows.tokens_learned)
        return (*starts, *(getattr(self.loop.config, field) for field in SHAPE))

    def can_batch_with(self, head: Self) -> bool:
        """Steps of one shape on documents of similar length."""
        if self.loop.model is not head.loop.model or self._shape != head._shape:
            return False
        longer, shorter = sorted((self._tokens, head._tokens), reverse=True)
        return self.max_batch_size > 1 and longer <= LONGEST_TO_SHORTEST * shorter

    @classmethod
    def run_batch(cls, operations: Sequence[Self]) -> Sequence[Outcome | Exception]:
        """One forward and one backward pass for all; every update is its request's own."""
        started = time.monotonic()
        loops = [step.loop for step in operations]
        drawn_before = [loop.generator.get_state() for loop in loops]
        try:
            found = losses(loops)
            judged = _judge_together(operations, found)
            verdicts = [s._verdict(f, judged) for s, f in zip(operations, found, strict=True)]
            made = [r for r, verdict in enumerate(verdicts) if verdict is None]
            for r in made:
                loops[r].optimizer.zero_grad()
            if made:
                # Requests share no term and no weight that is a leaf: each gets its own gradient.
                torch.stack([found[r].total for r in made]).sum().backward()
        except Exception:
            for loop, state in zip(loops, drawn_before, strict=True):
                loop.generator.set_state(state)
            raise
        seconds = (time.monotonic() - started) / len(loops)
        return [
            step._update(loss, seconds) if verdict is None else verdict
            for step, loss, verdict in zip(operations, found, verdicts, strict=True)
        ]

    def _verdict(self, loss: StepLoss, judged: bool) -> Outcome | Exception | None:
        """None if the step is worth making; has the weights judged if that is due and not done."""
        loop = self.loop
        try:
            if not judged and loop.is_due(self.number):
                loop.look(self.number - 1, loss.trunk)
        except Exception as error:
            return error
        if loop.judge is not None and loop.judge.out_of_patience:
            return Outcome(None, held_out.NO_IMPROVEMENT)
        return None

    def _update(self, loss: StepLoss, seconds: float) -> Outcome | Exception:
        try:
            return self.loop.update(self.number, loss, seconds)
        except Exception as error:
            return error


def _judge_together(steps: Sequence[AdaptStep], found: Sequence[StepLoss]) -> bool:
    """Have all guards judge in one reading, if the documents were read in one and all are due.

    Theirs are the losses that were found, of steps not made yet: read by the weights to be judged.
    """
    loops = [step.loop for step in steps if step.loop.ntp_reading is step.loop.document]
    judges = [loop.judge for loop in loops if loop.judge is not None]
    if not len(judges) == len(steps) > 1 or not all(s.loop.is_due(s.number) for s in steps):
        return False
    batch = found[0].trunk.batch
    numbers = [step.number - 1 for step in steps]
    held_out.see_together(judges, numbers, batch.trunk.hidden, batch.ends)
    return True


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
    return _ended(document.end(BASE), BASE, report)


def _ended(end: tuple[Tensor, State], used: FastWeights, report: AdaptationReport) -> Adapted:
    """The document as read with the weights that the answer will use."""
    hidden, state = end
    return Adapted(used.detach(), state, hidden, report)
