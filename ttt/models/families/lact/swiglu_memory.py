"""The SwiGLU memory of a LaCT layer and its update by a chunk (arXiv 2505.23884, section 3).

The memory is a SwiGLU MLP a head, f(q) = W1 (silu(W0 q) * W2 q), whose three weights a chunk of
tokens changes by one gradient step.

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
    """What tokens write into the memory: keys, values and learning rates."""

    k: Tensor
    """[B, H, T, D]."""
    v: Tensor
    """[B, H, T, D]."""
    rates: Tensor
    """[B, H, T, 3 L (+ 1)], at least fp32: the learning rates of w0, w1 and w2 (L = 1, or one a
    channel), then the momentum if the model has it."""

    def map(self, fn: Callable[[Tensor], Tensor]) -> "Writes":
        """Apply ``fn`` to every tensor."""
        return Writes(*(fn(x) for x in self))

    def tokens(self, start: int, end: int) -> "Writes":
        """Return tokens start … end - 1."""
        return self.map(lambda x: x[:, :, start:end])

    @staticmethod
    def cat(parts: Sequence["Writes"], dim: int) -> "Writes":
        """Concatenate rows (dim 0) or tokens (dim 2)."""
        return Writes(*(torch.cat(xs, dim=dim) for xs in zip(*parts, strict=True)))

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return sum(x.nbytes for x in self)


@dataclass(frozen=True, kw_only=True, slots=True)
class Rule:
    """What a model chooses of the update rule."""

    chunk: int
    """Tokens of a chunk."""
    muon: bool
    """Whether the gradient is orthogonalised (Muon) before it is added."""
    prenorm: bool
    """Whether gradients add up in weights of their own, and what is read is rescaled from them."""
    momentum: bool
    """Whether the update has momentum."""


@storable
@dataclass(frozen=True, slots=True)
class Memory:
    """The SwiGLU memory of M rows between two chunks."""

    weights: Weights
    """w0, w2 [M, H, F, D] and w1 [M, H, D, F]: what is read and differentiated."""
    norms: Weights
    """[M, H, F | D, 1], norms of the initial weights' rows."""
    momentum: Weights | None
    """As ``weights``; None without momentum."""
    main: Weights | None
    """The weights before rescaling; None unless the rule is prenorm."""

    @classmethod
    def initial(cls, weights: Weights, rule: Rule) -> "Memory":
        """Make the memory before the first chunk."""
        dtype = torch.promote_types(weights[0].dtype, torch.float32)
        weights = three(w.to(dtype) for w in weights)
        momentum = three(map(torch.zeros_like, weights)) if rule.momentum else None
        main = weights if rule.prenorm else None
        return cls(weights, three(map(_norm, weights)), momentum, main)

    @property
    def rows(self) -> int:
        """M, how many rows have a memory of their own."""
        return self.weights[0].shape[0]

    def map(self, fn: Callable[[Tensor], Tensor]) -> "Memory":
        """Apply ``fn`` to every tensor."""
        return _combine(fn, self)

    def select(self, rows: Sequence[int]) -> "Memory":
        """Return these rows, in this order."""
        return self.map(lambda t: torch.stack([t[r] for r in rows]))

    def spread(self, rows: int) -> "Memory":
        """Give each of ``rows`` rows a memory of its own, where several share one."""
        return self if self.rows == rows else self.map(lambda t: per_row(t, rows))

    def replace_rows(self, rows: Sequence[int], new: "Memory") -> "Memory":
        """Replace these rows' memories by those of ``new``."""
        index = torch.tensor(rows, device=self.weights[0].device)
        return _combine(lambda old, by: old.index_copy(0, index, by), self, new)

    @staticmethod
    def cat(memories: Sequence["Memory"]) -> "Memory":
        """Concatenate the rows of several memories."""
        return _combine(lambda *tensors: torch.cat(tensors), *memories)

    def read(self, q: Tensor) -> Tensor:
        """Read o [B, H, T, D] with queries q [B, H, T, D], B a multiple of M."""
        return dispatch.lact_apply(q, *self.weights)

    def write(self, chunk: Writes, rule: Rule) -> "Memory":
        """Return the memory after one whole chunk of M rows."""
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
        """Bytes held."""
        groups = (self.weights, self.norms, self.momentum, self.main)
        return sum(t.nbytes for group in groups if group is not None for t in group)


def _norm(w: Tensor) -> Tensor:
    """Compute the norms of rows: [..., 1]."""
    norm: Tensor = w.norm(dim=-1, keepdim=True)
    return norm


def _combine(fn: Callable[..., Tensor], *memories: Memory) -> Memory:
    """Apply ``fn`` to the tensors of several memories that correspond to each other."""

    def of(groups: Sequence[Weights]) -> Weights:
        return three(fn(*tensors) for tensors in zip(*groups, strict=True))

    momenta = [m.momentum for m in memories if m.momentum is not None]
    mains = [m.main for m in memories if m.main is not None]
    return Memory(
        weights=of([m.weights for m in memories]),
        norms=of([m.norms for m in memories]),
        momentum=of(momenta) if momenta else None,
        main=of(mains) if mains else None,
    )
