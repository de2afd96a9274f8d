"""What one step of one request is computed from, and what the requests of a batch must share."""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from refine_server.ttt.fast_weights import FastWeights
from refine_server.ttt.interface.config import AdaptConfig, Objective, Targets
from refine_server.ttt.models.base import CausalLM
from refine_server.ttt.refine.inputs.rows import Rows


@dataclass(frozen=True, kw_only=True, slots=True)
class StepShape:
    """The sizes of a step, which requests in one batch share; compared for equality.

    Everything else of a configuration is each request's own: the weights of the loss, the reward,
    the rule that selects positions, the learning rate and the seed.
    """

    objective: Objective
    one_trunk: bool
    """Whether rollouts start in the rows that the next-token loss reads."""
    rows: int
    """S: the rows that rollouts start in."""
    positions: int
    """G: the rollout positions in each row; S G = c, the paper's number of chunks."""
    rollouts: int
    """n: the rollouts sampled at each position."""
    reference: bool
    """Whether the document's own continuation joins each group of rollouts."""
    rollout_tokens: int
    """k."""
    temperature: float
    """τ."""
    targets: Targets
    rank: int
    """With ``targets``, the names and shapes of the fast weights."""

    @property
    def group(self) -> int:
        """The continuations of one position: n, and 1 more with a reference rollout."""
        return self.rollouts + self.reference


class AttentionTerm(Protocol):
    """A term of the loss that compares a question's attention with a target."""

    def loss(self, fast: FastWeights) -> Tensor:
        """Compute the term under ``fast``, in the graph: []."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StepInputs:
    """What one step of one request is computed from. Only the generator's state changes."""

    ntp_rows: Rows
    """What the next-token loss reads: the document, or its spans."""
    rollout_rows: Rows
    """Where rollouts start; most often the same object. Their forward under the base weights, from
    which the KL term is computed, belongs to them."""
    fast: FastWeights
    """The request's fast weights: leaves that require a gradient."""
    config: AdaptConfig
    generator: torch.Generator
    """Decides positions and rollouts."""
    attention: AttentionTerm | None = None
    """What the attention term compares with; None where the loss has no such term."""

    @classmethod
    def of(cls, rows: Rows, fast: FastWeights, config: AdaptConfig) -> "StepInputs":
        """Make the inputs of steps whose two terms read the same rows, seeded by ``config``."""
        return cls(
            ntp_rows=rows,
            rollout_rows=rows,
            fast=fast.requires_grad_(),
            config=config,
            generator=torch.Generator().manual_seed(config.seed),
        )

    @property
    def model(self) -> CausalLM:
        """The model that reads the rows."""
        return self.ntp_rows.model

    @property
    def shape(self) -> StepShape:
        """The sizes of this request's steps."""
        config, rows = self.config, self.rollout_rows
        return StepShape(
            objective=config.objective,
            one_trunk=self.ntp_rows is rows,
            rows=rows.input_ids.shape[0],
            positions=rows.positions,
            rollouts=config.rollouts.per_position,
            reference=config.rollouts.demonstration,
            rollout_tokens=config.rollouts.tokens,
            temperature=config.rollouts.temperature,
            targets=config.fast_weights.targets,
            rank=config.fast_weights.rank,
        )
