"""Fast weights: the tensors that requests own, by name, with the request dimension first."""

import re
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from refine_server.ttt.interface.errors import IsolationError

_LAYER = re.compile(r"\.layers\.(\d+)\.")


class FastWeights:
    """Tensors [R, ...] of R requests by name; an argument of a model's forward, never patched in.

    A name says what its tensor does to the module that it begins with: ``<module>.lora_a``
    [R, in, rank] and ``<module>.lora_b`` [R, rank, out] are a LoRA of the module, added to its
    output, ``<module>.state`` [R, H, K, V] is an initial memory, and the name of a parameter
    replaces that parameter.

    In a forward over N rows, N a multiple of R, request r has rows r N/R … (r + 1) N/R - 1.

    Args:
        tensors: one tensor [R, ...] for each name.
        owner: the request or adaptation that the copy belongs to. Every copy made from
            this one has the same owner, and ``require_owner`` checks it before
            the weights are used.

    Raises:
        ValueError: the tensors disagree on R.
    """

    def __init__(self, tensors: dict[str, Tensor] | None = None, owner: str | None = None) -> None:
        self.tensors = dict(tensors or {})
        self.owner = owner
        self._joint: dict[tuple[str, ...], tuple[Tensor, Tensor] | None] = {}
        sizes = {t.shape[0] for t in self.tensors.values()}
        if len(sizes) > 1:
            raise ValueError(f"fast weights disagree on the number of requests: {sorted(sizes)}")

    def __iter__(self) -> Iterator[str]:
        return iter(self.tensors)

    def __getitem__(self, name: str) -> Tensor:
        return self.tensors[name]

    def get(self, name: str) -> Tensor | None:
        """Return the tensor of that name, or None."""
        return self.tensors.get(name)

    def changes(self, module: str) -> bool:
        """Return whether requests own a linear module's weight, or a LoRA of it."""
        return f"{module}.lora_a" in self.tensors or f"{module}.weight" in self.tensors

    def joint_lora(
        self, modules: tuple[str, ...], sizes: tuple[int, ...]
    ) -> tuple[Tensor, Tensor] | None:
        """Join the LoRAs of modules with a common input into one for all their outputs.

        The result is kept, unless a LoRA requires a gradient and so may change in place.

        Args:
            modules: names of linear modules.
            sizes: widths of their outputs, which are concatenated.

        Returns:
            A [R, in, rank] and B [R, rank, sum of sizes], or None when no module has a LoRA.
        """
        if modules in self._joint:
            return self._joint[modules]
        a = {m: self.tensors[f"{m}.lora_a"] for m in modules if f"{m}.lora_a" in self.tensors}
        joint = self._join_lora(a, modules, sizes) if a else None
        if not any(t.requires_grad for t in a.values()):
            self._joint[modules] = joint
        return joint

    def _join_lora(
        self, a: dict[str, Tensor], modules: tuple[str, ...], sizes: tuple[int, ...]
    ) -> tuple[Tensor, Tensor]:
        if len(modules) == 1:
            return a[modules[0]], self.tensors[f"{modules[0]}.lora_b"]
        joint_a = torch.cat(list(a.values()), dim=2)
        joint_b = joint_a.new_zeros(joint_a.shape[0], joint_a.shape[2], sum(sizes))
        rank = out = 0
        for module, size in zip(modules, sizes, strict=True):
            if module in a:
                b = self.tensors[f"{module}.lora_b"]
                joint_b[:, rank : rank + b.shape[1], out : out + size] = b
                rank += b.shape[1]
            out += size
        return joint_a, joint_b

    @property
    def is_base(self) -> bool:
        """Whether there are none: the model is used as it was loaded."""
        return not self.tensors

    @property
    def requests(self) -> int:
        """R: how many requests' copies are stacked here; 1 for the base weights."""
        return next(iter(self.tensors.values())).shape[0] if self.tensors else 1

    @property
    def nbytes(self) -> int:
        """Bytes that the tensors hold."""
        return sum(t.nbytes for t in self.tensors.values())

    @property
    def first_layer(self) -> int | None:
        """The lowest layer with fast weights; None when there are some below all layers."""
        layers = [_LAYER.search(f".{name}") for name in self.tensors if not _above_layers(name)]
        if any(match is None for match in layers):
            return None
        return min((int(match[1]) for match in layers if match), default=0)

    def require_owner(self, owner: str) -> None:
        """Check whose copy this is; the base weights are everybody's.

        Raises:
            IsolationError: it is not the given owner's.
        """
        if not self.is_base and self.owner != owner:
            raise IsolationError(f"fast weights of {self.owner!r} were requested by {owner!r}")

    def parameters(self) -> list[Tensor]:
        """Return the tensors in a fixed order, as an optimiser takes them."""
        return list(self.tensors.values())

    def clone(self) -> "FastWeights":
        """Return a copy that shares no memory and has no graph."""
        return self.map(lambda t: t.detach().clone())

    def detach(self) -> "FastWeights":
        """Return the same tensors outside any graph."""
        return self.map(Tensor.detach)

    def requires_grad_(self, on: bool = True) -> "FastWeights":
        """Mark every tensor as a leaf that requires a gradient."""
        for tensor in self.tensors.values():
            tensor.requires_grad_(on)
        return self

    def is_finite(self) -> bool:
        """Return whether no value is NaN or infinite."""
        if self.is_base:
            return True
        # One answer for all tensors: the host waits for a GPU once.
        largest = torch._foreach_norm(list(self.tensors.values()), float("inf"))
        return bool(torch.stack(largest).isfinite().all())

    def to_dtype(self, dtype: torch.dtype) -> "FastWeights":
        """Return the LoRAs in the dtype that a forward computes in, in the graph.

        They are cast together, so that not every projection of every forward casts its own.
        """
        own = {n: t for n, t in self.tensors.items() if n.endswith((".lora_a", ".lora_b"))}
        if not own or all(t.dtype == dtype for t in own.values()):
            return self
        apply: Callable[..., tuple[Tensor, ...]] = _Cast.apply
        cast = apply(dtype, *own.values())
        return FastWeights({**self.tensors, **dict(zip(own, cast, strict=True))}, self.owner)

    def select(self, request: int) -> "FastWeights":
        """Return one request's part, as fast weights of one request."""
        return self.map(lambda t: t[request : request + 1])

    @staticmethod
    def stack(requests: Sequence["FastWeights"]) -> "FastWeights":
        """Stack several requests' fast weights, in order; those of one request stay as they are.

        Raises:
            ValueError: their names differ.
        """
        if len(requests) == 1:
            return requests[0]
        names = set(requests[0])
        if any(set(other) != names for other in requests):
            raise ValueError("only fast weights with the same names can be stacked")
        tensors = {n: torch.cat([r[n] for r in requests]) for n in requests[0]}
        owners = {r.owner for r in requests}
        return FastWeights(tensors, owners.pop() if len(owners) == 1 else None)

    @cached_property
    def is_lora(self) -> bool:
        """Whether nothing but LoRA has an effect once a sequence has begun."""
        return all(name.endswith((".lora_a", ".lora_b", ".state")) for name in self.tensors)

    @staticmethod
    def stack_lora(requests: Sequence["FastWeights"]) -> "FastWeights":
        """Stack several requests' LoRAs, for a forward that continues from their states.

        A smaller rank, or a module without a LoRA, is filled up with zeros, which add nothing.
        Initial memories are left out, because the states have replaced them. Those of one request
        stay as they are.
        """
        if len(requests) == 1:
            return requests[0]
        like = {n: t for r in requests for n, t in r.tensors.items() if not n.endswith(".state")}
        tensors = {}
        for name, example in like.items():
            own = [r.get(name) for r in requests]
            axis = 2 if name.endswith(".lora_a") else 1  # of the rank
            rank = max(0 if t is None else t.shape[axis] for t in own)
            shape = [*example.shape]
            shape[axis] = rank
            parts = [t for t in own if t is not None and t.shape[axis] == rank]
            if len(parts) == len(own):
                tensors[name] = torch.cat(parts)
                continue
            tensors[name] = stacked = example.new_zeros(len(own), *shape[1:])
            for row, t in enumerate(own):
                if t is not None:
                    stacked[row].narrow(axis - 1, 0, t.shape[axis]).copy_(t[0])
        return FastWeights(tensors)

    def map(self, fn: Callable[[Tensor], Tensor]) -> "FastWeights":
        return FastWeights({name: fn(t) for name, t in self.tensors.items()}, self.owner)


class _Cast(torch.autograd.Function):
    """Casts many tensors in a few launches, and their gradients back."""

    @staticmethod
    def forward(ctx: Any, dtype: torch.dtype, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.dtypes = [t.dtype for t in tensors]
        return _cast(tensors, [dtype] * len(tensors))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return (None, *_cast(grads, ctx.dtypes))


def _cast(tensors: Sequence[Tensor], dtypes: Sequence[torch.dtype]) -> tuple[Tensor, ...]:
    made = [torch.empty_like(t, dtype=dtype) for t, dtype in zip(tensors, dtypes, strict=True)]
    torch._foreach_copy_(made, list(tensors))
    return tuple(made)


def _above_layers(name: str) -> bool:
    return name in ("model.norm.weight", "lm_head.weight")


BASE = FastWeights()
"""No fast weights: the model as it was loaded."""
