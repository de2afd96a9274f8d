"""The operation that decodes one token: a forward pass over the last token, and its logits."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple, Self

import torch
from torch import Tensor
from typing_extensions import override

from refine_server.ttt.batching import Operation
from refine_server.ttt.fast_weights import FastWeights
from refine_server.ttt.models.base import CausalLM
from refine_server.ttt.models.state import State

MAX_DECODE_BATCH = 64
"""Sequences of one decoding batch; in larger ones the LM head's logits take most of the time."""


class Prediction(NamedTuple):
    """What the model predicts after the tokens that it has read, and the state after them."""

    logits: Tensor
    """[1 + accepted, V]: of the next token, and of the token after each accepted draft token."""
    state: State
    """State after all tokens read, accepted draft tokens included."""
    drafted: int = 0
    """Number of draft tokens that were tried."""

    @property
    def accepted(self) -> int:
        """Number of draft tokens that greedy decoding would have written."""
        return self.logits.shape[0] - 1


@dataclass(frozen=True)
class DecodeStep(Operation[Prediction]):
    """Read one token of one sequence and predict the one after it.

    A step that runs alone also reads the draft and keeps the part that greedy decoding would have
    written (speculative decoding with prompt lookup). In a batch the draft is ignored: the other
    rows already amortise the reading of the weights.
    """

    name: ClassVar[str] = "decode"
    model: CausalLM
    token: int
    """The token to read."""
    state: State
    """One row, after the token before it."""
    fast: FastWeights
    draft: tuple[int, ...] = ()
    """Tokens that may follow."""

    @property
    @override
    def max_batch_size(self) -> int:
        return MAX_DECODE_BATCH if self.model.stacks_states and self.fast.is_lora else 1

    @override
    def can_batch_with(self, head: Self) -> bool:
        # LoRAs of any rank batch with each other, and with none.
        return self.model is head.model and self.max_batch_size > 1

    @classmethod
    @override
    @torch.no_grad()
    def run_batch(cls, operations: Sequence[Self]) -> Sequence[Prediction | Exception]:
        # Every layer's projections and the head run once for all rows, each with its own LoRA.
        if len(operations) == 1:
            return [operations[0]._run_alone()]
        model = operations[0].model
        fast = FastWeights.stack_lora([step.fast for step in operations])
        state = State.stack([step.state for step in operations])
        ids = torch.tensor([[step.token] for step in operations], device=model.device)  # [B, 1]
        output = model(ids, state, fast)
        logits = model.head_logits(output.hidden[:, 0], fast)  # [B, V]
        rows = zip(logits.split(1), output.state.split(), strict=True)
        return [Prediction(*row) for row in rows]

    def _run_alone(self) -> Prediction:
        ids = torch.tensor([[self.token, *self.draft]], device=self.model.device)
        output = self.model(ids, self.state, self.fast)
        logits = self.model.head_logits(output.hidden[0], self.fast)  # [1 + drafted, V]
        drafted = len(self.draft)
        if not drafted:
            return Prediction(logits, output.state)
        right = (logits[:-1].argmax(-1) == ids[0, 1:]).cumprod(0)
        accepted = int(right.sum())
        state = output.state.truncate(drafted - accepted)
        return Prediction(logits[: 1 + accepted], state, drafted)
