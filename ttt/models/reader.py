"""Reading a text piece by piece, so that nobody else's work waits for the end of a long one."""

import time

import torch
from torch import Tensor

from refine_server.ttt.fast_weights import BASE, FastWeights
from refine_server.ttt.models.base import CausalLM
from refine_server.ttt.models.device import synchronize
from refine_server.ttt.models.state import State

BOUNDARY_TOKENS = 256
"""A piece ends at every multiple of so many tokens, so that states are kept at the same places
whatever the pace."""
GPU_BOUNDARY_TOKENS = 1024
"""The same on a GPU, which every piece makes launch all of a model's kernels again. States of
documents are kept after every so many tokens at the least."""


class Reader:
    """Reads a text without a graph, in pieces of the model's pace.

    Args:
        model: reads.
        input_ids: [1, T], T >= 1.
        state: of one row, what the text continues from; None: the start. It is not changed.
        fast: the fast weights that are read under.
    """

    def __init__(
        self,
        model: CausalLM,
        input_ids: Tensor,
        state: State | None = None,
        fast: FastWeights = BASE,
    ) -> None:
        self._model, self._input_ids, self._fast = model, input_ids, fast
        self._is_start = state is None
        self._boundary = BOUNDARY_TOKENS if input_ids.device.type == "cpu" else GPU_BOUNDARY_TOKENS
        self._state = state
        self.tokens = 0
        """Tokens that have been read."""
        self.seconds = 0.0
        """Seconds of reading, without what others did between two pieces."""

    @property
    def is_done(self) -> bool:
        """Whether all tokens have been read."""
        return self.tokens == self._input_ids.shape[1]

    @property
    def state(self) -> State:
        """The state after the tokens that have been read."""
        assert self._state is not None, "nothing was read"
        return self._state

    @torch.no_grad()
    def read_piece(self) -> Tensor:
        """Read the next tokens and return their hidden states [1, n, D]."""
        began = time.monotonic()
        pace, layers = self._model.pace, self._model.num_layers
        n = min(pace.tokens("read", layers), self._boundary - self.tokens % self._boundary)
        ids = self._input_ids[:, self.tokens : self.tokens + n]
        output = self._model(ids, self._state, self._fast)
        # A state that others share is not copied to be one with what follows it.
        self._state = output.state.joined() if self._is_start else output.state
        synchronize(self._model.device)
        seconds = time.monotonic() - began
        pace.observe("read", layers, ids.shape[1], seconds)
        self.tokens += ids.shape[1]
        self.seconds += seconds
        hidden: Tensor = output.hidden
        return hidden
