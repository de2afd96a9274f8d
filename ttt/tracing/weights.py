"""How far adapted weights are from the base weights, layer by layer."""

import math
import re
from collections import defaultdict

import torch
from torch import Tensor

from refine_server.ttt.fast_weights import FastWeights
from refine_server.ttt.interface.traces import LayerChange
from refine_server.ttt.models.base import CausalLM

LAYER = re.compile(r"\.layers\.(\d+)\.")


class WeightChanges:
    """Measures the changes of one request's fast weights.

    Args:
        model: the base model.
        fast: as they were made, equal to the base weights in effect.
    """

    def __init__(self, model: CausalLM, fast: FastWeights) -> None:
        parameters = dict(model.named_parameters())
        self._initial: dict[str, Tensor] = {}
        """Tensors that replace others; they are copied, as steps write in place."""
        self._base_norms: dict[str, float | None] = {}
        for name, own in fast.tensors.items():
            if name.endswith(".lora_a"):
                changed = parameters.get(name.removesuffix(".lora_a") + ".weight")
                self._base_norms[name] = None if changed is None else _norm(changed)
            elif not name.endswith(".lora_b"):
                self._initial[name] = own.detach().clone()
                self._base_norms[name] = _norm(own) or None  # an initial memory is zero

    @torch.no_grad()
    def measure(self, fast: FastWeights) -> tuple[LayerChange, ...]:
        """Return the change of each layer, those outside of layers last."""
        squares: dict[float, list[tuple[float, float | None]]] = defaultdict(list)
        for name, base in self._base_norms.items():
            if name in self._initial:
                change = _norm(fast[name] - self._initial[name])
            else:
                change = _product_norm(fast[name], fast[name.removesuffix("a") + "b"])
            found = LAYER.search(f".{name}")
            squares[int(found[1]) if found else math.inf].append((change, base))
        return tuple(
            _change(None if layer == math.inf else int(layer), parts)
            for layer, parts in sorted(squares.items())
        )


def _change(layer: int | None, parts: list[tuple[float, float | None]]) -> LayerChange:
    change = math.hypot(*(change for change, _ in parts))
    norms = [base for _, base in parts if base is not None]
    relative = change / math.hypot(*norms) if len(norms) == len(parts) else None
    return LayerChange(
        layer=layer,
        change=_rounded(change),
        relative=None if relative is None else _rounded(relative),
    )


def _norm(values: Tensor) -> float:
    return float(values.detach().float().norm())


def _product_norm(a: Tensor, b: Tensor) -> float:
    """Compute the Frobenius norm of A B, A [1, in, r] and B [1, r, out], without the product."""
    a, b = a[0].double(), b[0].double()
    return math.sqrt(max(float(((a.T @ a) * (b @ b.T)).sum()), 0.0))


def _rounded(value: float) -> float:
    return float(f"{value:.4g}")
