"""State and trace of a moving average: one vector a row."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import Tensor
from typing_extensions import override

from refine_server.ttt.models.state import LayerState, Trace, storable


@storable
@dataclass(frozen=True, slots=True)
class AverageState(LayerState):
    """The average after some tokens; it cannot be truncated, because it forgets."""

    stacks: ClassVar[bool] = True
    joins_segments: ClassVar[bool] = True

    mean: Tensor
    """[B, D], at least fp32."""

    @override
    def repeat(self, n: int) -> "AverageState":
        return AverageState(self.mean.repeat_interleave(n, 0))

    @override
    def detach(self) -> "AverageState":
        return AverageState(self.mean.detach())

    @property
    @override
    def nbytes(self) -> int:
        return self.mean.nbytes

    @classmethod
    @override
    def stack(cls, rows: Sequence[Self]) -> "AverageState":
        return AverageState(torch.cat([row.mean for row in rows]))

    @override
    def split(self) -> list["AverageState"]:
        return [AverageState(row) for row in self.mean.split(1)]


@dataclass(frozen=True, slots=True)
class AverageTrace(Trace):
    """The average before the first token and after each token."""

    branches_anywhere: ClassVar[bool] = True

    means: Tensor
    """[B, T + 1, D]."""

    @override
    def final(self) -> AverageState:
        return AverageState(self.means[:, -1].clone())

    @override
    def at(self, positions: Tensor) -> AverageState:
        row = torch.arange(positions.shape[0], device=positions.device)[:, None]
        return AverageState(self.means[row, positions].flatten(0, 1))  # [R G, D]

    @classmethod
    @override
    def join(cls, segments: Sequence[Self]) -> "AverageTrace":
        before = [segment.means[:, :-1] for segment in segments]
        return AverageTrace(torch.cat([*before, segments[-1].means[:, -1:]], dim=1))
