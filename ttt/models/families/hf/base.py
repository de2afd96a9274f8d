"""Models of transformers with an explicit state and explicit fast weights.

Weights, configuration and rotary tables are transformers'; the forward is ours, because branches
must share a document's keys and values inside the graph. A block runs a token mixer and an MLP on a
residual stream x [B, T, D], with RMS norms where the architecture has them:

    x = x + after_mixer(mix(before_mixer(x)))
    h = before_mlp(x)
    x = x + after_mlp((act(h W_gate) * h W_up) W_down)     # or experts, run as transformers' module

What a layer looks like is read from its modules (``architecture``), and the whole is compared with
transformers' own forward when a model is loaded: an architecture that only looks familiar is
refused instead of being served wrongly.
"""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from typing_extensions import override

from refine_server.kernels import dispatch
from refine_server.ttt.fast_weights import FastWeights
from refine_server.ttt.models.base import CausalLM, ModelError
from refine_server.ttt.models.families.hf.architecture import (
    HFRMSNorm,
    Settings,
    block_norms,
    recognise_norms,
    require_parts,
)
from refine_server.ttt.models.layers.attention import AttentionInputs, attention_to_state, signed
from refine_server.ttt.models.layers.functional import embedding, linear, packed_linear
from refine_server.ttt.models.layers.packing import pack
from refine_server.ttt.models.state import KVState, State, Trace

QKV = ("q_proj", "k_proj", "v_proj")
MLP_PROJECTIONS = ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
CHECKED_TOKENS = 24

Rotary = tuple[Tensor, Tensor] | None
"""Cosines and ``signed`` sines [B, 1, T, D_rotary], or None where positions are not encoded."""

RotaryTables = dict[str | None, Rotary]
"""Rotary tables by layer type; None stands for the types that have none of their own."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PackedProjections:
    """A layer's packed weights, [sum of out, in] each; None where they could not be packed."""

    qkv: Tensor | None
    """Of self_attn.q_proj, k_proj and v_proj."""
    gate_up: Tensor | None
    """Of mlp.gate_proj and up_proj."""

    @classmethod
    def of(cls, layer: nn.Module) -> "PackedProjections":
        """Pack a decoder layer's weights."""
        return cls(
            qkv=pack(_submodules(layer, "self_attn", QKV)),
            gate_up=pack(_submodules(layer, "mlp", ("gate_proj", "up_proj"))),
        )


class HFCausalLM(CausalLM):
    """A decoder of transformers: token mixers and MLPs on a residual stream, with RMS norms."""

    embed_name = "model.embed_tokens"

    def __init__(self, causal_lm: Any) -> None:
        """Take over a transformers model; raise ModelError when it would be computed wrongly."""
        super().__init__(causal_lm.config)
        everywhere = ("model.embed_tokens", "model.norm", "lm_head")
        require_parts(causal_lm, (*everywhere, *self.required_parts()))
        self.generation_config = causal_lm.generation_config
        self.settings = Settings.of(self.config)
        self.context_length = self.settings.context_length
        self.model = causal_lm.model
        self.lm_head = causal_lm.lm_head
        self.requires_grad_(False)
        self.norms: dict[str, HFRMSNorm] = recognise_norms(self)
        self.norm_eps = self.norms["model.norm"].eps
        self.block_norms = [block_norms(index, self.norms) for index in range(self.num_layers)]
        self.has_rotary = hasattr(self.model, "rotary_emb")
        self.has_gated_mlp = [
            bool(_submodules(layer, "mlp", ("gate_proj",))) for layer in self.model.layers
        ]
        self.is_swiglu = getattr(self.config, "hidden_act", None) in ("silu", "swish")
        self.pack_weights()
        self._check_parity(causal_lm)

    @override
    def pack_weights(self) -> None:
        self.packed = [PackedProjections.of(layer) for layer in self.model.layers]
        pack([self.lm_head])

    @abstractmethod
    def required_parts(self) -> tuple[str, ...]:
        """Return the names of modules that every model of the family has."""

    @abstractmethod
    def mix(
        self, index: int, h: Tensor, state: Any, fast: FastWeights, context: RotaryTables
    ) -> tuple[Tensor, Trace]:
        """Run the token mixer of layer ``index`` over h [B, T, D]."""

    @abstractmethod
    def attention_inputs(
        self, index: int, h: Tensor, fast: FastWeights, context: RotaryTables
    ) -> AttentionInputs:
        """Project h [B, T, D] to what the softmax of layer ``index`` takes."""

    # -- forward --------------------------------------------------------------------------------

    @override
    def context(self, x: Tensor, position: Tensor) -> RotaryTables:
        """Make rotary tables by layer type for the tokens of x [B, T, D]."""
        if not self.has_rotary:
            return {None: None}
        at = position[:, None] + torch.arange(x.shape[1], device=x.device)  # [B, T]
        if not self.settings.rotary_types:
            return {None: _tables(self.model.rotary_emb(x, at), x.dtype)}
        return {
            kind: _tables(self.model.rotary_emb(x, at, kind), x.dtype)
            for kind in self.settings.rotary_types
        }

    @override
    def block(
        self, index: int, x: Tensor, state: Any, fast: FastWeights, context: RotaryTables
    ) -> tuple[Tensor, Trace]:
        norms = self.block_norms[index]
        h = _normed(x, norms.before_mixer, fast)
        mixed, trace = self.mix(index, h, state, fast, context)
        x = x + _normed(mixed, norms.after_mixer, fast)
        h = _normed(x, norms.before_mlp, fast)
        return x + _normed(self._mlp(index, h, fast), norms.after_mlp, fast), trace

    @override
    def attention_to_prefix(
        self, input_ids: Tensor, state: State, fast: FastWeights, layers: Sequence[int]
    ) -> list[Tensor]:
        x, weights, done = embedding(input_ids, self.embedding, fast, self.embed_name), [], 0
        context = self.context(x, state.position)
        for index in layers:
            own, below = state.layers[index], state.layers[done:index]
            if index not in self.attention_layers or not isinstance(own, KVState):
                raise TypeError(f"layer {index} has no softmax attention to all tokens")
            x, _ = self.run_layers(x, below, state.position, fast, done, index)
            h = _normed(x, self.block_norms[index].before_mixer, fast)
            inputs = self.attention_inputs(index, h, fast, context)
            weights.append(attention_to_state(inputs, own))
            done = index
        return weights

    @override
    def final_norm(self, x: Tensor, fast: FastWeights) -> Tensor:
        return self.norms["model.norm"](x, fast)

    def _mlp(self, index: int, h: Tensor, fast: FastWeights) -> Tensor:
        mlp, name = self.model.layers[index].mlp, f"model.layers.{index}.mlp"
        if not self.has_gated_mlp[index]:
            return _call_with_own_parameters(mlp, h, fast, name)
        gate, up = packed_linear(
            h,
            (mlp.gate_proj, mlp.up_proj),
            self.packed[index].gate_up,
            fast,
            (f"{name}.gate_proj", f"{name}.up_proj"),
        )
        if self.is_swiglu:
            h = dispatch.swiglu(gate, up)
        else:
            h = mlp.act_fn(gate)
            h = h * up if h.requires_grad or up.requires_grad else h.mul_(up)
        return linear(h, mlp.down_proj, fast, f"{name}.down_proj")

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
                f"those of transformers by a relative error of {float(error):.2g}"
            )


def _normed(x: Tensor, norm: HFRMSNorm | None, fast: FastWeights) -> Tensor:
    return x if norm is None else norm(x, fast)


def _tables(cos_sin: tuple[Tensor, Tensor], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Give transformers' tables [B, T, D_rotary] a dimension of heads: [B, 1, T, D_rotary]."""
    cos, sin = cos_sin
    return cos[:, None].to(dtype), signed(sin)[:, None].to(dtype)


def _submodules(layer: nn.Module, parent: str, names: tuple[str, ...]) -> list[nn.Module]:
    """Return these children of a layer's child, or none if one of them is missing."""
    try:
        return [layer.get_submodule(f"{parent}.{name}") for name in names]
    except AttributeError:
        return []


def _call_with_own_parameters(module: nn.Module, h: Tensor, fast: FastWeights, name: str) -> Tensor:
    """Run a module of transformers over h [N, T, D], with the requests' own parameters if any.

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
