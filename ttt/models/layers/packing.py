"""Packed projections: weights that are read together lie side by side in memory.

Projections of the same input lie in one matrix, so that one product reads them all, and column by
column: on AVX2 a vector times such a matrix streams at twice the speed of dot products with its
rows. Values, shapes and names of the parameters stay as they were; nothing is kept twice.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from refine_server.ttt.fast_weights import FastWeights

DTYPES = (torch.float32, torch.float64)
"""Types whose products go through BLAS; oneDNN packs half precision in its own way."""


def pack(modules: Sequence[nn.Module]) -> Tensor | None:
    """Pack the modules' weights into one, [sum of out, in]; their parameters become its views.

    Returns None, and changes nothing, unless all are plain linear layers without bias, of one
    type, on the CPU.
    """
    weights = [plain.weight for m in modules if (plain := plain_linear(m)) is not None]
    if not weights or len(weights) < len(modules):
        return None
    first = weights[0]
    if first.device.type != "cpu" or first.dtype not in DTYPES:
        return None
    if any((w.device, w.dtype) != (first.device, first.dtype) for w in weights):
        return None
    packed = torch.cat([w.detach().T for w in weights], dim=1).T  # column by column
    sizes = [w.shape[0] for w in weights]
    for weight, part in zip(weights, packed.split(sizes), strict=True):
        weight.data = part
    return packed


def release_files(model: nn.Module) -> None:
    """Copy weights that can be packed out of the files that they are mapped from.

    Packing copies most weights. Those that are not packed would keep the whole mapping in memory,
    and with it a second copy of the others.
    """
    for weight in model.parameters():
        if weight.device.type == "cpu" and weight.dtype in DTYPES:
            weight.data = weight.detach().clone()


def plain_linear(module: nn.Module) -> nn.Linear | None:
    """Return the module if it computes x W^T and nothing else."""
    return module if type(module) is nn.Linear and module.bias is None else None


@dataclass(frozen=True, slots=True)
class PackedLinear:
    """Projections of one input in one matrix, and the requests' LoRAs of them."""

    weight: Tensor
    """[in, sum of out]."""
    names: tuple[str, ...]
    """The modules' names, in order."""
    sizes: tuple[int, ...]
    """The modules' out, in order."""

    @classmethod
    def of(cls, parent: nn.Module, name: str, parts: Sequence[str]) -> "PackedLinear | None":
        """Pack children of a module of that name; None where they cannot be packed."""
        modules: list[Any] = [parent.get_submodule(part) for part in parts]
        packed = pack(modules)
        if packed is None:
            return None
        names = tuple(f"{name}.{part}" for part in parts)
        return cls(packed.T, names, tuple(m.weight.shape[0] for m in modules))

    def __call__(self, x: Tensor, fast: FastWeights, onto: Tensor | None = None) -> Tensor:
        """Project x [n, in] to [n, sum of out], with the requests' LoRA, added to ``onto``."""
        y = torch.mm(x, self.weight) if onto is None else torch.addmm(onto, x, self.weight)
        lora = fast.joint_lora(self.names, self.sizes)
        if lora is not None:
            a, b = lora
            R = a.shape[0]
            y.view(R, -1, y.shape[1]).baddbmm_(torch.bmm(x.view(R, -1, x.shape[1]), a), b)
        return y


def pack_taps(convs: Sequence[nn.Conv1d]) -> Tensor:
    """Pack the taps of depthwise convolutions into [W, sum of C], of which theirs become views."""
    taps = torch.cat([conv.weight.detach()[:, 0].T for conv in convs], dim=1)
    sizes = [conv.weight.shape[0] for conv in convs]
    for conv, part in zip(convs, taps.split(sizes, dim=1), strict=True):
        conv.weight.data = part.T[:, None]
    return taps
