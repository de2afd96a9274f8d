"""Models of transformers with an explicit state and explicit fast weights.

Weights, configuration and rotary tables are transformers'; the forward is ours, because branches
must share a document's keys and values inside the graph. What a layer looks like is read from its
modules, and ``check_parity`` compares the whole with transformers' own forward when a model is
loaded: an architecture that only looks familiar is refused instead of being served wrongly.
"""

from abc import abstractmethod
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from refine_server.ttt.fast_weights import FastWeights
from refine_server.ttt.models.base import CausalLM, ModelError
from refine_server.ttt.models.layers.attention import signed
from refine_server.ttt.models.layers.functional import joint_linear, linear, rms_norm
from refine_server.ttt.models.layers.packing import Norm, join, join_projections
from refine_server.ttt.models.state import LayerState, Trace

MLP_PROJECTIONS = ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
CHECKED_TOKENS = 24

Rotary = tuple[Tensor, Tensor] | None
"""Cosines and ``signed`` sines [B, 1, T, D_rotary], or None where positions are not encoded."""

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
"""Settings that change what is computed and that this forward does not know, where harmless."""

STATIC_ROPE = ("default", "linear", "llama3", "yarn", "proportional")
"""Rotary types whose tables do not depend on the length of the sequence."""


@dataclass(frozen=True)
class Layout:
    """Names of a layer's norms around its token mixer and its MLP; None where there is none."""

    before_mixer: str | None
    after_mixer: str | None
    before_mlp: str | None
    after_mlp: str | None


class HFCausalLM(CausalLM):
    """A decoder of transformers: token mixers and MLPs on a residual stream, with RMS norms."""

    embed_name = "model.embed_tokens"

    def __init__(self, causal_lm: Any) -> None:
        """Take over a transformers model; raise ModelError when it would be computed wrongly."""
        super().__init__()
        self._require_parts(causal_lm)
        self.config = causal_lm.config
        self.generation_config = getattr(causal_lm, "generation_config", None)
        _require_known_settings(self.config)
        self.model = causal_lm.model
        self.lm_head = causal_lm.lm_head
        self.requires_grad_(False)
        self.norms = self._recognise_norms()
        self.norm_eps = self.norms["model.norm"].eps
        self.layouts = [_layout(layer) for layer in self.model.layers]
        self.lay_out()
        self._check_parity(causal_lm)

    def lay_out(self) -> None:
        """See ``CausalLM.lay_out``."""
        self.joined = join_projections(self.model.layers)
        join([self.lm_head])

    @abstractmethod
    def required_parts(self) -> tuple[str, ...]:
        """Modules that every model of the family has."""

    @abstractmethod
    def mix(
        self,
        index: int,
        h: Tensor,
        state: Any,
        fast: FastWeights,
        context: dict[str | None, Rotary],
    ) -> tuple[Tensor, Trace]:
        """The token mixer of layer ``index`` over h [B, T, D]."""

    # -- forward --------------------------------------------------------------------------------

    def context(self, x: Tensor, position: Tensor) -> dict[str | None, Rotary]:
        """Rotary tables by layer type (None: the same for all) for the tokens of x [B, T, D]."""
        rotary = getattr(self.model, "rotary_emb", None)
        if rotary is None:
            return {None: None}
        at = position[:, None] + torch.arange(x.shape[1], device=x.device)  # [B, T]
        kinds = self._rotary_kinds()
        tables: dict[str | None, Rotary] = {}
        for kind in kinds:
            cos, sin = rotary(x, at) if kind is None else rotary(x, at, kind)
            tables[kind] = cos[:, None].to(x.dtype), signed(sin)[:, None].to(x.dtype)
        return tables

    def _rotary_kinds(self) -> set[str | None]:
        """Layer types that have rotary tables of their own; {None} where all share one."""
        parameters = getattr(self.config, "rope_parameters", None) or {}
        own = {kind for kind in parameters if isinstance(parameters[kind], dict)}
        return own or {None}

    def block(
        self,
        index: int,
        x: Tensor,
        state: LayerState | None,
        fast: FastWeights,
        context: dict[str | None, Rotary],
    ) -> tuple[Tensor, Trace]:
        """One layer: token mixer, then MLP, with norms where the layer has them."""
        layout, name = self.layouts[index], f"model.layers.{index}"
        h = self._maybe_norm(x, name, layout.before_mixer, fast)
        mixed, trace = self.mix(index, h, state, fast, context)
        x = x + self._maybe_norm(mixed, name, layout.after_mixer, fast)
        h = self._maybe_norm(x, name, layout.before_mlp, fast)
        y = self._mlp(index, h, fast)
        return x + self._maybe_norm(y, name, layout.after_mlp, fast), trace

    def norm(self, x: Tensor, name: str, fast: FastWeights) -> Tensor:
        """The norm of that name."""
        n = self.norms[name]
        return rms_norm(x, n.module.weight, n.eps, fast, name, zero_centred=n.zero_centred)

    def _final_norm(self, x: Tensor, fast: FastWeights) -> Tensor:
        return self.norm(x, "model.norm", fast)

    def _maybe_norm(self, x: Tensor, layer: str, norm: str | None, fast: FastWeights) -> Tensor:
        return x if norm is None else self.norm(x, f"{layer}.{norm}", fast)

    def _mlp(self, index: int, h: Tensor, fast: FastWeights) -> Tensor:
        mlp, name = self.model.layers[index].mlp, f"model.layers.{index}.mlp"
        if not hasattr(mlp, "gate_proj"):
            return _as_requests(mlp, h, fast, name)
        gate, up = joint_linear(
            h,
            (mlp.gate_proj, mlp.up_proj),
            self.joined[index].gate_up,
            fast,
            (f"{name}.gate_proj", f"{name}.up_proj"),
        )
        h = mlp.act_fn(gate)
        h = h * up if h.requires_grad or up.requires_grad else h.mul_(up)
        return linear(h, mlp.down_proj, fast, f"{name}.down_proj")

    # -- what is refused ------------------------------------------------------------------------

    def _require_parts(self, causal_lm: nn.Module) -> None:
        kind = type(causal_lm).__name__
        for name in ("model.embed_tokens", "model.norm", "lm_head", *self.required_parts()):
            try:
                causal_lm.get_submodule(name)
            except AttributeError:
                raise ModelError(f"{kind} is not Llama-like: it has no {name}") from None

    def _recognise_norms(self) -> dict[str, Norm]:
        return {
            name: _recognise(name, module)
            for name, module in self.named_modules()
            if name.endswith("norm") and not hasattr(module, "activation")  # those are gated
        }

    @torch.no_grad()
    def _check_parity(self, causal_lm: nn.Module) -> None:
        """Compare with transformers' own forward on a few tokens, if there are weights."""
        if self.device.type == "meta":
            return
        vocabulary = self.config.vocab_size
        ids = torch.arange(3, 3 + 7 * CHECKED_TOKENS, 7, device=self.device)[None] % vocabulary
        theirs = causal_lm(input_ids=ids, use_cache=False).logits.float()
        # The mean: in half precision a token near a tie may go to another expert; that is no error.
        error = (self(ids).logits.float() - theirs).abs().mean() / theirs.abs().mean()
        if not error <= (1e-3 if self.dtype.itemsize >= 4 else 1e-1):
            raise ModelError(
                f"{self.config.model_type}: the model is not Llama-like: its logits differ from "
                f"transformers' own by {float(error):.2g} of their size"
            )


def _require_known_settings(config: Any) -> None:
    for key, harmless in NEUTRAL.items():
        value = getattr(config, key, None)
        if value not in harmless:
            raise ModelError(f"{config.model_type}: {key}={value!r} is not supported")
    rope = getattr(config, "rope_parameters", None) or {}
    by_kind = [value for value in rope.values() if isinstance(value, dict)] or [rope]
    for parameters in by_kind:
        kind = parameters.get("rope_type", "default")
        if kind not in STATIC_ROPE:
            raise ModelError(
                f"{config.model_type}: rope_type={kind!r} is not supported: its tables change with "
                "the sequence's length, so a state could not go on"
            )


@torch.no_grad()
def _recognise(name: str, module: Any) -> Norm:
    """Find out which kind of RMS norm a module is, by trying a copy with other weights."""
    eps = getattr(module, "variance_epsilon", getattr(module, "eps", None))
    if eps is not None and isinstance(getattr(module, "weight", None), nn.Parameter):
        copy = deepcopy(module).to_empty(device="cpu").float()
        size = copy.weight.shape[0]
        copy.weight.copy_(torch.linspace(0.5, 1.5, size))
        probe = torch.linspace(-1.5, 2.0, size)[None]
        for zero_centred in (False, True):
            ours = rms_norm(probe, copy.weight, eps, FastWeights(), name, zero_centred=zero_centred)
            if torch.allclose(ours, copy(probe), rtol=1e-4, atol=1e-5):
                return Norm(module, float(eps), zero_centred)
    raise ModelError(
        f"the model is not Llama-like: {name} ({type(module).__name__}) is no RMS norm"
    )


def _layout(layer: nn.Module) -> Layout:
    """Which norms stand where, from their names in Llama, Gemma and OLMo."""
    if hasattr(layer, "pre_feedforward_layernorm"):
        return Layout(
            "input_layernorm",
            "post_attention_layernorm",
            "pre_feedforward_layernorm",
            "post_feedforward_layernorm",
        )
    if hasattr(layer, "post_feedforward_layernorm"):
        return Layout(None, "post_attention_layernorm", None, "post_feedforward_layernorm")
    return Layout("input_layernorm", None, "post_attention_layernorm", None)


def _as_requests(module: nn.Module, h: Tensor, fast: FastWeights, name: str) -> Tensor:
    """A module of transformers as it is, with the requests' own parameters where they have some.

    The parameters are handed in for one call; the module keeps its own.
    """
    own = {key.removeprefix(f"{name}."): fast[key] for key in fast if key.startswith(f"{name}.")}
    if not own:
        y: Tensor = module(h)
        return y
    rows = h.split(h.shape[0] // fast.requests)
    types = {key: parameter.dtype for key, parameter in module.named_parameters()}
    outputs = [
        functional_call(module, {key: t[r].to(types[key]) for key, t in own.items()}, (part,))
        for r, part in enumerate(rows)
    ]
    return torch.cat(outputs)
