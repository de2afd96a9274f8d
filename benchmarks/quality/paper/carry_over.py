"""Weights that carry over from document to document, as in the paper's published code.

That code has one model. It makes its optimiser steps on a batch of 8 prompts, answers them, and
goes on to the next batch with the weights and the optimiser's state as they are. With REFINE there
is a step on each half of a batch, with the next-token loss alone one step on all of it. A step's
loss is the mean over its prompts.

One thing differs here: the rollouts of the second half are sampled after the first half's step, not
before it.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from refine_server.benchmarks.common.rows import DataError
from refine_server.ttt.interface.config import AdaptConfig
from refine_server.ttt.models import CausalLM
from refine_server.ttt.models.tape import Tape
from refine_server.ttt.pieces import run_pieces
from refine_server.ttt.refine.inputs.rows import Rows
from refine_server.ttt.refine.inputs.step_inputs import StepInputs
from refine_server.ttt.refine.loss import losses_in_pieces
from refine_server.ttt.refine.optimizer import FastWeightOptimizer


class CarriedWeights:
    """A copy of all weights that is adapted to one batch of prompts after the other.

    Args:
        model: the model whose weights are copied; they stay as they are.
        config: the settings of a step.

    Raises:
        DataError: the settings are not for weights that carry over.
    """

    def __init__(self, model: CausalLM, config: AdaptConfig) -> None:
        if config.fast_weights.targets != "all" or config.guard != "none":
            raise DataError("--carry-over: needs fast_weights.targets all and guard none")
        self.model, self.config = model, config
        self.fast = model.new_fast_weights("all", config.fast_weights.rank, config.seed)
        self.fast.requires_grad_()
        self.optimizer = FastWeightOptimizer(config, self.fast)
        self.generator = torch.Generator().manual_seed(config.seed)

    def adapt(self, batch: Sequence[Tensor]) -> None:
        """Make the optimiser steps on a batch of prompts, [T] token ids each."""
        half = -(-len(batch) // 2)
        size = half if self.config.objective == "refine" else len(batch)
        for _ in range(self.config.optimizer.steps):
            for start in range(0, len(batch), size):
                self.step(batch[start : start + size])

    def step(self, prompts: Sequence[Tensor]) -> None:
        """Make one optimiser step on the mean loss of some prompts, [T] token ids each.

        There is no step if the gradient is not finite.
        """
        self.optimizer.zero_grad()
        for ids in prompts:  # one by one: only one prompt's graph is alive at a time
            positions = self.config.rollouts.positions
            rows = Rows(self.model, ids[None], self.fast, positions=positions)
            inputs = StepInputs(
                ntp_rows=rows,
                rollout_rows=rows,
                fast=self.fast,
                config=self.config,
                generator=self.generator,
            )
            tape = Tape()
            [loss] = run_pieces(losses_in_pieces([inputs], tape))
            (loss.total / len(prompts)).backward()
            run_pieces(tape.backward())
        self.optimizer.step(torch.ones((), dtype=torch.bool, device=self.model.device))
        self.optimizer.zero_grad()
