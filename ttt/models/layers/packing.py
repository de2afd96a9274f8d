"""Where the base weights lie in memory: as a processor reads them fastest, token by token.

Projections of the same input lie side by side, so that one product reads them all, and column by
column: on AVX2 a vector times such a matrix streams at twice the speed of dot products with its
rows. Values, shapes and names of the parameters stay as they were; nothing is kept twice.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

DTYPES = (torch.float32, torch.float64)
"""Those whose products go through BLAS; oneDNN packs half precision in its own way."""


@dataclass(frozen=True)
class Norm:
    """A norm that was recognised: its module, and whether the weight counts from 1 or from 0."""

    module: Any
    eps: float
    zero_centred: bool


@dataclass(frozen=True)
class Joined:
    """A layer's weights side by side, [sum of out, in] each; None where they could not be joined.

    qkv: of self_attn.q_proj, k_proj and v_proj. gate_up: of mlp.gate_proj and up_proj.
    """

    qkv: Tensor | None
    gate_up: Tensor | None


def join_projections(layers: Iterable[Any]) -> list[Joined]:
    """Lay the weights of every decoder layer side by side."""
    return [
        Joined(
            join(_found(getattr(layer, "self_attn", None), ("q_proj", "k_proj", "v_proj"))),
            join(_found(getattr(layer, "mlp", None), ("gate_proj", "up_proj"))),
        )
        for layer in layers
    ]


def join(modules: Sequence[Any]) -> Tensor | None:
    """The modules' weights as one, [sum of out, in], of which their parameters become views.

    None, and nothing changed, unless all are plain linear layers without bias, of one type, on the
    CPU.
    """
    weights = [m.weight for m in modules if type(m) is nn.Linear and m.bias is None]
    if not weights or len(weights) < len(modules):
        return None
    first = weights[0]
    if first.device.type != "cpu" or first.dtype not in DTYPES:
        return None
    if any((w.device, w.dtype) != (first.device, first.dtype) for w in weights):
        return None
    joined = torch.cat([w.detach().T for w in weights], dim=1).T  # column by column
    sizes = [w.shape[0] for w in weights]
    for weight, part in zip(weights, joined.split(sizes), strict=True):
        weight.data = part
    return joined


def join_taps(convs: Sequence[Any]) -> Tensor:
    """The taps of depthwise convolutions as one, [W, sum of C], of which their own become views."""
    taps = torch.cat([conv.weight.detach()[:, 0].T for conv in convs], dim=1)
    sizes = [conv.weight.shape[0] for conv in convs]
    for conv, part in zip(convs, taps.split(sizes, dim=1), strict=True):
        conv.weight.data = part.T[:, None]
    return taps


def _found(parent: Any, names: Sequence[str]) -> Sequence[Any]:
    modules = [getattr(parent, name, None) for name in names]
    return [] if None in modules else modules
