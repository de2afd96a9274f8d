"""One optimiser step, as an operation that serves several requests in one batch."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Self, TypeVar

import torch
from torch import Tensor
from typing_extensions import override

from refine_server.ttt.batching import Operation
from refine_server.ttt.fast_weights import FastWeights
from refine_server.ttt.interface.config import AdaptConfig
from refine_server.ttt.interface.measures import EvalResult
from refine_server.ttt.interface.reports import StepReport
from refine_server.ttt.models.base import CausalLM
from refine_server.ttt.models.device import synchronize
from refine_server.ttt.models.tape import Tape
from refine_server.ttt.pieces import Pieces, run_pieces, timed
from refine_server.ttt.refine import guard
from refine_server.ttt.refine.held_out import HeldOutEvaluator, evaluate_batch
from refine_server.ttt.refine.inputs.rows import Rows, Span
from refine_server.ttt.refine.inputs.step_inputs import StepInputs
from refine_server.ttt.refine.loss import StepLoss, losses_in_pieces
from refine_server.ttt.refine.optimizer import FastWeightOptimizer
from refine_server.ttt.refine.time_limit import TimeLimit
from refine_server.ttt.tracing.step import StepTracer

T = TypeVar("T")

MAX_BATCH_TOKENS = 4096
"""The most tokens, padding included, in one thread's share of a batch: more gain no speed and take
memory."""
MAX_LENGTH_RATIO = 1.25
"""How many times longer than another a document of one batch may be: the rest is padding."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AdaptationRun:
    """What the steps of one adaptation share."""

    document: Rows
    """The whole document, one row."""
    inputs: StepInputs
    optimizer: FastWeightOptimizer
    evaluator: HeldOutEvaluator | None
    """Evaluates the weights between the steps; None without a guard."""
    reads_again: bool = True
    """Whether the document is read once more after the last step."""
    spans: Sequence[Span] = ()
    """What the steps read, in tokens of the document; empty where it is the whole document."""
    tracer: StepTracer | None = None
    """Describes the steps; None where no trace is asked for."""

    @classmethod
    def of(cls, document: Rows, fast: FastWeights, config: AdaptConfig) -> "AdaptationRun":
        """Make a run whose steps read the whole document and are not evaluated."""
        inputs = StepInputs.of(document, fast, config)
        optimizer = FastWeightOptimizer(config, inputs.fast)
        return cls(document=document, inputs=inputs, optimizer=optimizer, evaluator=None)

    @property
    def model(self) -> CausalLM:
        """The model that reads the document."""
        return self.document.model

    @property
    def fast(self) -> FastWeights:
        """The weights that are adapted, in place."""
        return self.inputs.fast

    @property
    def config(self) -> AdaptConfig:
        """The settings of the adaptation."""
        return self.inputs.config

    @property
    def reads_document(self) -> bool:
        """Whether the next-token loss reads the whole document, not spans of it."""
        return self.inputs.ntp_rows is self.document

    @property
    def out_of_patience(self) -> bool:
        """Whether no better weights are to be expected of more steps."""
        return self.evaluator is not None and self.evaluator.out_of_patience


@dataclass(frozen=True, slots=True)
class StepDone:
    """The step was made."""

    report: StepReport


@dataclass(frozen=True, slots=True)
class StepRejected:
    """The step was computed but not made, for a ``reason`` of ``guard``."""

    report: StepReport
    reason: str


@dataclass(frozen=True, slots=True)
class NoImprovement:
    """The step was not made, because the last evaluations found no better weights."""


@dataclass(frozen=True, slots=True)
class StepAbandoned:
    """The step was left before its end, for a ``reason``; nothing was changed."""

    reason: str


StepOutcome = StepDone | StepRejected | NoImprovement | StepAbandoned


@dataclass(frozen=True)
class AdaptStep(Operation[StepOutcome]):
    """Step ``number`` of an adaptation, counted from 1."""

    name: ClassVar[str] = "adapt"
    waits_for_peers: ClassVar[bool] = True
    run: AdaptationRun
    number: int
    limit: TimeLimit | None = None
    """When the step is left before its end; None: never."""

    @property
    @override
    def max_batch_size(self) -> int:
        # Full copies share no matrix product, and rows that continue from states of their own no
        # attention, so they gain from threads alone.
        continues = self.run.inputs.ntp_rows.state is not None
        targets = self.run.config.fast_weights.targets
        if not self.run.model.stacks_states or targets == "all" or continues:
            return self.threads
        return self.threads * max(1, int(MAX_BATCH_TOKENS / MAX_LENGTH_RATIO) // self._tokens)

    @property
    @override
    def threads(self) -> int:
        return self.run.model.threads

    @override
    def can_batch_with(self, head: Self) -> bool:
        own, other = self.run.inputs, head.run.inputs
        if own.model is not other.model or own.shape != other.shape:
            return False
        shorter, longer = sorted((self._tokens, head._tokens))
        return self.max_batch_size > 1 and longer <= MAX_LENGTH_RATIO * shorter

    @override
    def interrupted(self) -> StepOutcome | None:
        reason = None if self.limit is None else self.limit.reason()
        return None if reason is None else StepAbandoned(reason)

    @property
    def _tokens(self) -> int:
        return self.run.inputs.ntp_rows.input_ids.numel()

    @classmethod
    @override
    def run_batch(cls, operations: Sequence[Self]) -> Sequence[StepOutcome | Exception]:
        return run_pieces(cls.in_pieces(operations))

    @classmethod
    @override
    def in_pieces(cls, operations: Sequence[Self]) -> Pieces[Sequence[StepOutcome | Exception]]:
        """Make R steps with one forward and one backward pass; each request has its own update."""
        wait = partial(synchronize, operations[0].run.model.device)
        (losses, stops), seconds = yield from timed(_passes(operations), wait)
        seconds /= len(operations)
        return [
            _attempt(partial(step.update, loss, seconds)) if stop is None else stop
            for step, loss, stop in zip(operations, losses, stops, strict=True)
        ]

    def update(self, loss: StepLoss, seconds: float) -> StepOutcome:
        """Write the update that the gradient asks for, if gradient and loss are finite.

        Args:
            loss: of this step; its backward pass is done.
            seconds: this step's share of the time that the batch's passes took.
        """
        started = time.monotonic()
        grad_norm = self.run.optimizer.step(loss.total.detach().isfinite())  # [1]
        figures = _figures(loss, grad_norm)
        reason = guard.check_step(figures["loss"], figures["grad_norm"])
        seconds += time.monotonic() - started
        report = StepReport(
            step=self.number, seconds=seconds, rollout_tokens=loss.rollout_tokens, **figures
        )
        if self.run.tracer is not None:
            trace = self.run.tracer.describe(loss, self.run.fast, self._evaluated)
            report = report.model_copy(update={"trace": trace})
        return StepDone(report) if reason is None else StepRejected(report, reason)

    def evaluate(self, loss: StepLoss) -> Pieces[None]:
        """Evaluate the weights that the steps before this one made, if that is due.

        Args:
            loss: of this step, computed under these weights.
        """
        if (evaluator := self.due_evaluator) is not None:
            trunk = loss.ntp_trunk if self.run.reads_document else None
            yield from evaluator.evaluate(self.number - 1, trunk)

    @property
    def due_evaluator(self) -> HeldOutEvaluator | None:
        """The run's evaluator, if it is to evaluate the weights before this step."""
        evaluator = self.run.evaluator
        return evaluator if evaluator is not None and evaluator.is_due(self.number - 1) else None

    @property
    def _evaluated(self) -> EvalResult | None:
        """The evaluation of the weights before this step; None where none was due."""
        results = [] if self.run.evaluator is None else self.run.evaluator.results
        return results[-1] if results and results[-1].step == self.number - 1 else None


Stop = NoImprovement | Exception | None
"""Why a step of a batch is not made, or None if it is."""


def _passes(steps: Sequence[AdaptStep]) -> Pieces[tuple[list[StepLoss], list[Stop]]]:
    """Compute the losses of steps, and the gradients of those that are made."""
    inputs = [step.run.inputs for step in steps]
    with _restored_on_failure([own.generator for own in inputs]):
        limits = [step.limit for step in steps if step.limit is not None]
        for limit in limits:
            limit.begin_reading()
        tape = Tape()
        losses = yield from losses_in_pieces(inputs, tape)
        yield
        stops = yield from _evaluate(steps, losses)
        for limit in limits:
            limit.end_reading()
        yield
        yield from _backward(steps, losses, stops, tape)
    return losses, stops


def _evaluate(steps: Sequence[AdaptStep], losses: Sequence[StepLoss]) -> Pieces[list[Stop]]:
    """Evaluate the weights whose evaluation is due, under which the losses were computed.

    One forward serves all of them where all are due and the batch's trunk is over whole documents.
    """
    due = [step.due_evaluator for step in steps]
    evaluators = [evaluator for evaluator in due if evaluator is not None]
    failures: list[Exception | None] = [None] * len(steps)
    trunk = losses[0].ntp_trunk
    all_due = len(evaluators) == len(steps) > 1
    if trunk is not None and all_due and all(step.run.reads_document for step in steps):
        made = [step.number - 1 for step in steps]
        yield from evaluate_batch(evaluators, made, trunk.batch.hidden, trunk.batch.ends)
    else:
        for number, (step, loss) in enumerate(zip(steps, losses, strict=True)):
            try:
                yield from step.evaluate(loss)
            except Exception as error:
                failures[number] = error
    return [
        NoImprovement() if failure is None and step.run.out_of_patience else failure
        for step, failure in zip(steps, failures, strict=True)
    ]


def _backward(
    steps: Sequence[AdaptStep], losses: Sequence[StepLoss], stops: Sequence[Stop], tape: Tape
) -> Pieces[None]:
    """Compute the gradients of all steps that are made in one backward pass.

    Requests share no term and no leaf, so the gradient of the losses' sum gives each its own.
    """
    totals = []
    for step, loss, stop in zip(steps, losses, stops, strict=True):
        if stop is None:
            step.run.optimizer.zero_grad()
            totals.append(loss.total)
    if totals:
        torch.stack(totals).sum().backward()
        yield from tape.backward()


def _attempt(call: Callable[[], T]) -> T | Exception:
    """Return the result of a call, or its exception: it fails for its own request alone."""
    try:
        return call()
    except Exception as error:
        return error


@contextmanager
def _restored_on_failure(generators: Sequence[torch.Generator]) -> Iterator[None]:
    """Put generators back on an exception, so that the steps can be tried again one by one."""
    before = [generator.get_state() for generator in generators]
    try:
        yield
    except Exception:
        for generator, state in zip(generators, before, strict=True):
            generator.set_state(state)
        raise


@torch.no_grad()
def _figures(loss: StepLoss, grad_norm: Tensor) -> dict[str, float]:
    """Read a step's figures, all at once: the host waits for a GPU each time it reads."""
    spread = loss.rewards.std() if loss.rewards.numel() > 1 else loss.rewards.new_zeros(())
    figures = {
        "loss": loss.total,
        "ntp_loss": loss.ntp,
        "grpo_loss": loss.grpo,
        "reward_mean": loss.rewards.mean(),
        "reward_std": spread,
        "entropy_mean": loss.entropy.mean(),
        "kl": loss.kl,
        "attention": loss.attention,
        "grad_norm": grad_norm[0],
    }
    values = torch.stack([value.to(torch.float64) for value in figures.values()]).tolist()
    return dict(zip(figures, values, strict=True))
