"""What a transformers model computes, read from its configuration and its modules.

Many architectures differ in a few points only: where norms stand, whether their weight counts from
0 or from 1, which layers have a window. What is not known here is refused instead of being computed
wrongly.
"""

from collections.abc import Iterable
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from refine_server.ttt.fast_weights import FastWeights
from refine_server.ttt.models.base import ModelError
from refine_server.ttt.models.layers.functional import rms_norm

NEUTRAL: dict[str, tuple[Any, ...]] = {
    "attn_logit_softcapping": (None,),
    "final_logit_softcapping": (None,),
    "logits_scaling": (None, 1.0),
    "logit_scale": (None, 1.0),
    "embedding_multiplier": (None, 1.0),
    "residual_multiplier": (None, 1.0),
    "use_bidirectional_attention": (None, False),
    "attention_chunk_size": (None,),
}
"""Settings that this forward does not compute, with the values that change nothing."""

STATIC_ROPE = ("default", "linear", "llama3", "yarn", "proportional")
"""Rotary types whose tables do not depend on the length of the sequence."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """What the forward reads of a transformers configuration."""

    layer_types: tuple[str, ...] | None
    """Each layer's type of token mixer; None where the configuration distinguishes none."""
    sliding_window: int | None
    """Tokens that layers with a window see; None where no layer has one."""
    rotary_types: frozenset[str]
    """Layer types that have rotary tables of their own; empty where all layers share one."""
    context_length: int | None
    """Longest sequence, in tokens, that full attention was trained for; None where not stated."""

    @classmethod
    def of(cls, config: Any) -> "Settings":
        """Read a configuration; raise ModelError for a setting that would be computed wrongly."""
        for key, harmless in NEUTRAL.items():
            value = _setting(config, key)
            if value not in harmless:
                raise ModelError(f"{config.model_type}: {key}={value!r} is not supported")
        rope: dict[str, Any] = _setting(config, "rope_parameters") or {}
        by_type = {kind: value for kind, value in rope.items() if isinstance(value, dict)}
        for parameters in by_type.values() or [rope]:
            _require_static(config.model_type, parameters.get("rope_type", "default"))
        types = _setting(config, "layer_types")
        windowed = _setting(config, "use_sliding_window", True)
        window = _setting(config, "sliding_window") if windowed else None
        return cls(
            layer_types=None if types is None else tuple(map(str, types)),
            sliding_window=int(window) if window else None,
            rotary_types=frozenset(by_type),
            context_length=_context_length(_setting(config, "max_position_embeddings"), rope),
        )

    def layer_type(self, index: int) -> str | None:
        """Return the layer's type of token mixer, or None."""
        return None if self.layer_types is None else self.layer_types[index]


def _setting(config: Any, name: str, default: Any = None) -> Any:
    return getattr(config, name, default)


def _context_length(positions: int | None, rope: dict[str, Any]) -> int | None:
    """Return the longest sequence that a configuration is made for, in tokens.

    Args:
        positions: ``max_position_embeddings``. Scaling by ``linear`` and ``yarn`` adds to it, as
            transformers' documentation says; ``llama3`` has it included.
        rope: ``rope_parameters``. Where layer types have their own (Gemma 3), ``positions`` already
            has the scaling included.
    """
    scale = rope.get("factor") or 1.0
    match rope.get("rope_type"), positions:
        case ("linear", int()):
            return int(positions * scale)
        case ("yarn", int()):
            original = rope.get("original_max_position_embeddings") or positions
            return max(positions, int(original * scale))
        case _:
            return positions


def _require_static(model_type: str, rope_type: str) -> None:
    if rope_type not in STATIC_ROPE:
        raise ModelError(
            f"{model_type}: rope_type={rope_type!r} is not supported: its tables change with the "
            "sequence's length, so a state could not be continued"
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class HFRMSNorm:
    """An RMS norm of a transformers model."""

    name: str
    module: Any
    """The module that holds ``weight`` [D]."""
    eps: float
    zero_centred: bool
    """Whether the factor is 1 + weight."""

    def __call__(self, x: Tensor, fast: FastWeights) -> Tensor:
        """Norm x [N, ..., D]."""
        weight, zero_centred = self.module.weight, self.zero_centred
        return rms_norm(x, weight, self.eps, fast, self.name, zero_centred=zero_centred)


def recognise_norms(model: nn.Module) -> dict[str, HFRMSNorm]:
    """Find all norms of a model by name; raise ModelError for one that is no RMS norm.

    Norms with a gate (an ``activation``) belong to their layers and are left out.
    """
    named = (n for n in model.named_modules() if n[0].endswith("norm"))
    return {name: _recognise(name, m) for name, m in named if not hasattr(m, "activation")}


@torch.no_grad()
def _recognise(name: str, module: Any) -> HFRMSNorm:
    """Find out which kind of RMS norm a module is, by trying a copy with other weights."""
    eps = getattr(module, "variance_epsilon", getattr(module, "eps", None))
    if eps is not None and isinstance(getattr(module, "weight", None), nn.Parameter):
        copy = deepcopy(module).to_empty(device="cpu").float()
        size = copy.weight.shape[0]
        copy.weight.copy_(torch.linspace(0.5, 1.5, size))
        probe = torch.linspace(-1.5, 2.0, size)[None]
        for zero_centred in (False, True):
            ours = HFRMSNorm(name=name, module=copy, eps=float(eps), zero_centred=zero_centred)
            if torch.allclose(ours(probe, FastWeights()), copy(probe), rtol=1e-4, atol=1e-5):
                return replace(ours, module=module)
    raise ModelError(
        f"the model is not Llama-like: {name} ({type(module).__name__}) is not an RMS norm"
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class BlockNorms:
    """A block's norms around its token mixer and its MLP; None where there is none."""

    before_mixer: HFRMSNorm | None
    after_mixer: HFRMSNorm | None
    before_mlp: HFRMSNorm | None
    after_mlp: HFRMSNorm | None


def block_norms(index: int, norms: dict[str, HFRMSNorm]) -> BlockNorms:
    """Find where a block's norms stand, from their names in Llama, Gemma and OLMo."""

    def norm(name: str) -> HFRMSNorm | None:
        return norms.get(f"model.layers.{index}.{name}")

    if norm("pre_feedforward_layernorm"):  # Gemma: on both sides
        return BlockNorms(
            before_mixer=norm("input_layernorm"),
            after_mixer=norm("post_attention_layernorm"),
            before_mlp=norm("pre_feedforward_layernorm"),
            after_mlp=norm("post_feedforward_layernorm"),
        )
    if norm("post_feedforward_layernorm"):  # OLMo 2: behind
        return BlockNorms(
            before_mixer=None,
            after_mixer=norm("post_attention_layernorm"),
            before_mlp=None,
            after_mlp=norm("post_feedforward_layernorm"),
        )
    return BlockNorms(
        before_mixer=norm("input_layernorm"),
        after_mixer=None,
        before_mlp=norm("post_attention_layernorm"),
        after_mlp=None,
    )


def require_parts(causal_lm: nn.Module, parts: Iterable[str]) -> None:
    """Raise ModelError unless a transformers model has all of these modules."""
    for name in parts:
        try:
            causal_lm.get_submodule(name)
        except AttributeError:
            kind = type(causal_lm).__name__
            raise ModelError(f"{kind} is not Llama-like: it has no {name}") from None
