"""What the models in flash-linear-attention's layout share: names, norms, MLP and the block.

A block runs a token mixer and a gated MLP, each on a normed residual stream x [B, T, D]:

    x = x + mixer(rms_norm(x))
    h = rms_norm(x)
    x = x + (silu(h W_gate) * h W_up) W_down
"""

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import partial
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn
from typing_extensions import override

from refine_server.kernels import dispatch
from refine_server.ttt.fast_weights import FastWeights
from refine_server.ttt.models.base import CausalLM, Context, ModelError
from refine_server.ttt.models.layers.functional import linear, linears, rms_norm
from refine_server.ttt.models.state import Trace

MLP_PROJECTIONS = ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")


@dataclass(frozen=True, kw_only=True)
class FlaConfig:
    """The fields that change what is computed and that every family has."""

    hidden_size: int
    num_hidden_layers: int
    vocab_size: int
    intermediate_size: int | None = None
    hidden_ratio: int | None = 4
    norm_eps: float = 1e-6
    hidden_act: str = "swish"
    tie_word_embeddings: bool = False
    bos_token_id: int | None = None
    eos_token_id: int | None = None

    @classmethod
    def from_dict(cls, config: dict[str, Any]) -> Self:
        """Read a configuration; raise ModelError, by name, for a setting computed wrongly here."""
        known = {f.name for f in fields(cls)}
        kind = config.get("model_type")
        try:
            parsed = cls(**{key: value for key, value in config.items() if key in known})
        except TypeError as error:
            raise ModelError(f"{kind}: incomplete configuration: {error}") from None
        for key, allowed in parsed.fixed().items():
            if getattr(parsed, key) not in allowed:
                raise ModelError(f"{kind}: {key}={getattr(parsed, key)!r} is not supported")
        return parsed

    def fixed(self) -> dict[str, tuple[Any, ...]]:
        """Return the fields of which only some values are computed, with those values."""
        return {"hidden_act": ("swish", "silu")}

    @property
    def mlp_size(self) -> int:
        """Width of the MLP; fla's default is hidden_ratio · 2/3 of D, in multiples of 256."""
        if self.intermediate_size is not None:
            return self.intermediate_size
        size = int(self.hidden_size * (self.hidden_ratio or 4) * 2 / 3)
        return 256 * -(-size // 256)


class RMSNorm(nn.Module):
    """The weight [D] of an RMS norm."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))


class GatedMLP(nn.Module):
    """The parameters of the gated MLP."""

    def __init__(self, config: FlaConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.mlp_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.mlp_size, bias=False)
        self.down_proj = nn.Linear(config.mlp_size, config.hidden_size, bias=False)


class FlaBlock(nn.Module):
    """The parameters of one layer."""

    def __init__(self, config: FlaConfig, attention: nn.Module) -> None:
        super().__init__()
        self.attn_norm = RMSNorm(config.hidden_size)
        self.attn = attention
        self.mlp_norm = RMSNorm(config.hidden_size)
        self.mlp = GatedMLP(config)


class FlaModel(nn.Module):
    """The parameters below the LM head."""

    def __init__(self, config: FlaConfig, attention: Callable[[], nn.Module]) -> None:
        super().__init__()
        # Its own initialisation, on the meta device, would import torch's compiler for seconds.
        weight = torch.empty(config.vocab_size, config.hidden_size)
        self.embeddings = nn.Embedding(config.vocab_size, config.hidden_size, _weight=weight)
        layers = (FlaBlock(config, attention()) for _ in range(config.num_hidden_layers))
        self.layers = nn.ModuleList(layers)
        self.norm = RMSNorm(config.hidden_size)


class FlaCausalLM(CausalLM):
    """A stack of blocks, each a token mixer of the family's and a gated MLP."""

    embed_name = "model.embeddings"
    attention: ClassVar[type[nn.Module]]
    """The token mixer's parameters, constructed from the configuration."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.norm_eps = config.norm_eps
        self.model = FlaModel(config, partial(self.attention, config))
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        if config.tie_word_embeddings:
            self.lm_head.weight = self.model.embeddings.weight
        self.requires_grad_(False)

    @abstractmethod
    def _mix(
        self, attn: Any, h: Tensor, state: Any, fast: FastWeights, name: str, context: Context
    ) -> tuple[Tensor, Trace]:
        """Run the token mixer over h [B, T, D]; ``name`` is that of its module ``attn``."""

    @override
    def block(
        self, index: int, x: Tensor, state: Any, fast: FastWeights, context: Context
    ) -> tuple[Tensor, Trace]:
        layer, name = self.model.layers[index], f"model.layers.{index}"
        h = rms_norm(x, layer.attn_norm.weight, self.norm_eps, fast, f"{name}.attn_norm")
        mixed, trace = self._mix(layer.attn, h, state, fast, f"{name}.attn", context)
        x = x + mixed
        h = rms_norm(x, layer.mlp_norm.weight, self.norm_eps, fast, f"{name}.mlp_norm")
        gate, up = linears(h, layer.mlp, ("gate_proj", "up_proj"), fast, f"{name}.mlp")
        down = linear(dispatch.swiglu(gate, up), layer.mlp.down_proj, fast, f"{name}.mlp.down_proj")
        return x + down, trace
