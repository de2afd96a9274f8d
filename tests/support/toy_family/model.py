"""The toy family. The token mixer of one layer, over normed tokens h [B, T, D]:

v   = h W_v                            # [B, T, D]
m_t = a m_{t-1} + (1 - a) v_t          # [B, D], a = sigmoid(decay), m_0 = 0
return (m * silu(h W_g)) W_o           # [B, T, D]
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import override

from refine_server.ttt.fast_weights import FastWeights
from refine_server.ttt.models.families.fla.base import MLP_PROJECTIONS, FlaCausalLM, FlaConfig
from refine_server.ttt.models.families.registry import register_native
from refine_server.ttt.models.layers.functional import linear, linears, own_parameter
from support.toy_family.state import AverageState, AverageTrace

MIXER_PROJECTIONS = ("attn.v_proj", "attn.g_proj", "attn.o_proj")
PROJECTIONS = {
    "fast_weights": MIXER_PROJECTIONS,
    "low_rank": (*MIXER_PROJECTIONS, *MLP_PROJECTIONS),
    "queries": ("attn.g_proj",),  # the gate chooses what a token reads of the average
}


@dataclass(frozen=True, kw_only=True)
class MovingAverageConfig(FlaConfig):
    """The configuration: one field in addition to those of every family."""

    gate_activation: str = "silu"

    @override
    def fixed(self) -> dict[str, tuple[Any, ...]]:
        return super().fixed() | {"gate_activation": ("silu",)}


class MovingAverageMixer(nn.Module):
    """The parameters of one layer's token mixer."""

    def __init__(self, config: MovingAverageConfig) -> None:
        super().__init__()
        D = config.hidden_size
        self.v_proj = nn.Linear(D, D, bias=False)
        self.g_proj = nn.Linear(D, D, bias=False)
        self.o_proj = nn.Linear(D, D, bias=False)
        self.decay = nn.Parameter(torch.zeros(1))


@register_native("moving_average", config=MovingAverageConfig)
class MovingAverage(FlaCausalLM):
    """A language model that mixes tokens by moving averages; requests own LoRA on the mixers."""

    family = "moving_average"
    attention = MovingAverageMixer
    state_classes = frozenset({AverageState})

    @override
    def context(self, x: Tensor, position: Tensor) -> None:
        """Return nothing: an average does not depend on positions."""

    @override
    def _mix(
        self,
        attn: MovingAverageMixer,
        h: Tensor,
        state: AverageState | None,
        fast: FastWeights,
        name: str,
        context: None,
    ) -> tuple[Tensor, AverageTrace]:
        v, gate = linears(h, attn, ("v_proj", "g_proj"), fast, name)
        wide = torch.promote_types(h.dtype, torch.float32)
        a = own_parameter(attn.decay, fast, f"{name}.decay", h).to(wide).sigmoid()  # [1|B, 1, 1]
        t = torch.arange(h.shape[1], device=h.device)
        weights = ((1 - a) * a ** (t[:, None] - t).clamp_min(0)).tril()  # [1|B, T, T]
        before = h.new_zeros(*h.shape[::2], dtype=wide) if state is None else state.mean  # [B, D]
        means = weights @ v.to(wide) + a ** (t[:, None] + 1) * before[:, None]  # [B, T, D]
        trace = AverageTrace(torch.cat([before[:, None], means], dim=1))
        o = trace.means[:, 1:].to(h.dtype) * F.silu(gate)
        return linear(o, attn.o_proj, fast, f"{name}.o_proj"), trace

    @override
    def new_fast_weights(self, targets: str, rank: int, seed: int) -> FastWeights:
        if targets == "all":
            return self.full_copy()
        projections = PROJECTIONS[targets]
        layers = range(self.num_layers)
        names = [f"model.layers.{i}.{projection}" for i in layers for projection in projections]
        return FastWeights(self.lora_weights(names, rank, seed))
