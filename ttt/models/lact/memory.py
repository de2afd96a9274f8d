"""How a LaCT layer's memory changes from chunk to chunk (arXiv 2505.23884, section 3).

The gradient of a chunk comes from ``kernels.lact_swiglu``; here it becomes an update: momentum,
Muon if the model was trained with it, and rows rescaled to the norms that they had at the start.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from refine_server.kernels import dispatch
from refine_server.kernels.lact_swiglu import Weights, three
from refine_server.ttt.models.layers.functional import per_row
from refine_server.ttt.models.state import storable


@storable
class Writes(NamedTuple):
    """What tokens have to write: keys, values and rates.

    k, v: [B, H, T, D]. rates: [B, H, T, 3 L (+ 1)], at least fp32: the learning rates of w0, w1 and
    w2 (L = 1, or one a channel), then the momentum if the model has it.
    """

    k: Tensor
    v: Tensor
    rates: Tensor

    def map(self, fn: Callable[[Tensor], Tensor]) -> "Writes":
        """``fn`` of every tensor."""
        return Writes(*(fn(x) for x in self))

    def tokens(self, start: int, end: int) -> "Writes":
        """Tokens start … end - 1."""
        return self.map(lambda x: x[:, :, start:end])

    @staticmethod
    def cat(parts: Sequence["Writes"], dim: int) -> "Writes":
        """Several writes side by side: rows (dim 0) or tokens (dim 2)."""
        return Writes(*(torch.cat(xs, dim=dim) for xs in zip(*parts, strict=True)))

    @property
    def nbytes(self) -> int:
        return sum(x.nbytes for x in self)


@dataclass(frozen=True)
class Rule:
    """What of the update rule a model chooses."""

    chunk: int
    muon: bool
    prenorm: bool
    momentum: bool


@storable
@dataclass(frozen=True)
class Memory:
    """The memory of M rows between two chunks.

    weights: what is read and differentiated. norms: of the initial weights' rows, [M, H, F|D, 1].
    momentum: None without momentum. main: the weights before rescaling, None unless the rule is
    prenorm.
    """

    weights: Weights
    norms: Weights
    momentum: Weights | None
    main: Weights | None

    @classmethod
    def initial(cls, weights: Weights, rule: Rule) -> "Memory":
        """Before the first chunk."""
        dtype = torch.promote_types(weights[0].dtype, torch.float32)
        weights = three(w.to(dtype) for w in weights)
        momentum = three(map(torch.zeros_like, weights)) if rule.momentum else None
        main = weights if rule.prenorm else None
        return cls(weights, three(map(_norm, weights)), momentum, main)

    @property
    def rows(self) -> int:
        """M."""
        return self.weights[0].shape[0]

    def map(self, fn: Callable[[Tensor], Tensor]) -> "Memory":
        """``fn`` of every tensor."""
        return _combine(fn, self)

    def select(self, rows: Sequence[int]) -> "Memory":
        """These rows, in this order."""
        return self.map(lambda t: torch.stack([t[r] for r in rows]))

    def spread(self, rows: int) -> "Memory":
        """One memory for each of ``rows`` rows, M of which share one now."""
        return self if self.rows == rows else self.map(lambda t: per_row(t, rows))

    def replace_rows(self, rows: Sequence[int], new: "Memory") -> "Memory":
        """These rows' memories exchanged for those of ``new``."""
        index = torch.tensor(rows, device=self.weights[0].device)
        return _combine(lambda old, by: old.index_copy(0, index, by), self, new)

    @staticmethod
    def cat(memories: Sequence["Memory"]) -> "Memory":
        """The rows of several memories in one."""
        return _combine(lambda *tensors: torch.cat(tensors), *memories)

    def read(self, q: Tensor) -> Tensor:
        """o [B, H, T, D] for queries q [B, H, T, D], B a multiple of M."""
        return dispatch.lact_apply(q, *self.weights)

    def write(self, chunk: Writes, rule: Rule) -> "Memory":
        """The memory after one whole chunk of M rows."""
        width = chunk.rates.shape[-1] // 3  # what is left over is the momentum
        lr0, lr1, lr2 = chunk.rates[..., : 3 * width].split(width, dim=-1)
        steps = dispatch.lact_gradient(chunk.k, chunk.v, lr0, lr1, lr2, *self.weights)
        keep = None
        if rule.momentum:  # contiguous, so that it is summed in lact_llm's order
            keep = chunk.rates[..., -1:].contiguous().mean(dim=2, keepdim=True)  # [M, H, 1, 1]
        before = self.weights if self.main is None else self.main  # [M, H, F|D, D|F]
        new = dispatch.lact_update(
            steps, before, self.norms, self.momentum, keep, muon=rule.muon, prenorm=rule.prenorm
        )
        return Memory(new.weights, self.norms, new.momentum, new.main)

    @property
    def nbytes(self) -> int:
        groups = (self.weights, self.norms, self.momentum, self.main)
        return sum(t.nbytes for group in groups if group is not None for t in group)


def _norm(w: Tensor) -> Tensor:
    """Norms of rows: [..., 1]."""
    norm: Tensor = w.norm(dim=-1, keepdim=True)
    return norm


def _combine(fn: Callable[..., Tensor], *memories: Memory) -> Memory:
    """``fn`` of the tensors that correspond to each other."""

    def of(name: str) -> Weights | None:
        groups = [getattr(m, name) for m in memories]
        if groups[0] is None:
            return None
        return three(fn(*tensors) for tensors in zip(*groups, strict=True))

    weights, norms = of("weights"), of("norms")
    assert weights is not None
    assert norms is not None
    return Memory(weights, norms, of("momentum"), of("main"))
