"""Compute what a model needs, without its weights: bytes by request, document and token.

The model is built on torch's meta device, which knows shapes and no numbers, and runs there: what
its forward keeps is counted instead of being restated in formulas.
"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.overrides import TorchFunctionMode

from refine_server.ttt.fast_weights import FastWeights
from refine_server.ttt.models.base import CausalLM, ModelError
from refine_server.ttt.models.families import native_family
from refine_server.ttt.models.loading.loader import (
    find,
    has_chat_template,
    model_type_of,
    read_config,
    wrap,
)

MEASURED = (4096, 8192)
"""Document lengths, in tokens, that are measured; longer ones are extrapolated from the two."""

OPTIMIZER_COPIES = 4
"""Fast weights, their gradient and AdamW's two moments."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Figures:
    """What a model takes; all bytes are computed, none is allocated."""

    name: str
    family: str
    model_type: str
    has_chat_template: bool
    """Whether the server writes prompts by the tokenizer's chat template, unless --chat is set."""
    context_length: int | None
    """Longest sequence, in tokens, whose positions the model was trained for; None: any length."""
    dtype: str
    """Of the base weights."""
    parameters: int
    """Number of base weights."""
    weight_bytes: int
    """Of the base weights."""
    targets: str
    """What a request owns."""
    fast_weight_bytes: int
    """Of one request's fast weights."""
    state_bytes: dict[int, int]
    """Of an adapted document's state, by the document's length in tokens."""
    step_bytes: dict[int, int]
    """What one adaptation step keeps for its backward pass, by the document's length in tokens;
    the work space of single ops comes on top."""
    memory_bytes: int | None
    """The memory that a document must fit, if one was given."""
    longest_document: int | None
    """Tokens of the longest document that fits ``memory_bytes`` while it is adapted on."""


def measure(
    name: str,
    *,
    dtype: torch.dtype | None = None,
    targets: str = "fast_weights",
    rank: int = 8,
    memory_bytes: int | None = None,
) -> Figures:
    """Measure a model by name, directory or hub id; of the hub, no weights are fetched.

    Raises:
        ModelError: it does not exist, or is of no supported family.
    """
    directory = find(name, weights=False)
    config = read_config(directory)
    model = _skeleton(config, directory, dtype or _dtype_of(config))
    fast = model.new_fast_weights(targets, rank, 0)
    with torch.no_grad():
        states = {T: model(_tokens(T)).state.nbytes for T in MEASURED}
    steps = {T: _kept_by_a_step(model, fast, T) for T in MEASURED}
    weight_bytes = sum(p.nbytes for p in model.parameters())
    longest = None
    if memory_bytes is not None:
        left = memory_bytes - weight_bytes - OPTIMIZER_COPIES * fast.nbytes
        longest = _longest(steps, left)
    return Figures(
        name=name,
        family=model.family,
        model_type=model_type_of(config),
        has_chat_template=has_chat_template(directory),
        context_length=model.context_length,
        dtype=str(model.dtype).removeprefix("torch."),
        parameters=model.num_parameters,
        weight_bytes=weight_bytes,
        targets=targets,
        fast_weight_bytes=fast.nbytes,
        state_bytes=states,
        step_bytes=steps,
        memory_bytes=memory_bytes,
        longest_document=longest,
    )


def _skeleton(config: dict[str, Any], directory: Path, dtype: torch.dtype) -> CausalLM:
    """Build the model on the meta device."""
    family = native_family(model_type_of(config))
    if family is not None:
        return family.skeleton(config).to(dtype)
    from transformers import AutoConfig, AutoModelForCausalLM

    try:
        parsed = AutoConfig.from_pretrained(directory, trust_remote_code=False)
        with torch.device("meta"):
            causal_lm = AutoModelForCausalLM.from_config(parsed, dtype=dtype)
    except (ValueError, KeyError, TypeError) as error:
        kind = model_type_of(config)
        raise ModelError(f"model_type {kind!r} is not supported: {error}") from error
    _without_routing(causal_lm)
    return wrap(causal_lm)


def _dtype_of(config: dict[str, Any]) -> torch.dtype:
    inner = config.get("text_config") or {}
    names = [c.get(key) for c in (config, inner) for key in ("dtype", "torch_dtype")]
    name = next((n for n in names if isinstance(n, str)), "float32")
    dtype = getattr(torch, name, None)
    if not isinstance(dtype, torch.dtype):
        raise ModelError(f"dtype {name!r} in config.json is not a data type of torch")
    return dtype


def _tokens(T: int) -> Tensor:
    return torch.zeros(1, T, dtype=torch.int64, device="meta")


def _kept_by_a_step(model: CausalLM, fast: FastWeights, T: int) -> int:
    """Count the bytes that reading T tokens keeps for its backward pass, without the weights."""
    known = {_key(p) for p in (*model.parameters(), *fast.parameters())}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        if _key(tensor) not in known:
            kept[_key(tensor)] = tensor.untyped_storage().nbytes()
        return tensor

    ids = _tokens(T)
    fast = fast.detach().requires_grad_()
    known |= {_key(p) for p in fast.parameters()}
    with FusedAttention(), saved_tensors_hooks(keep, lambda tensor: tensor):
        frozen = model.freeze(ids, fast)
        trunk = model.trunk(frozen, fast)
        model.token_stats(trunk.hidden[:, :-1], ids[:, 1:], fast)
    below = [trace.final() for trace in frozen.traces]
    hidden = 0 if frozen.hidden is None else frozen.hidden.nbytes
    return sum(kept.values()) + hidden + sum(state.nbytes for state in below)


class FusedAttention(TorchFunctionMode):
    """Lets attention keep what a fused kernel keeps: on the meta device torch knows only the form
    that keeps every score."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Replace fused attention; call every other function of torch as it is."""
        if func is F.scaled_dot_product_attention:
            return _Attention.apply(*args[:3])  # type: ignore[no-untyped-call]
        return func(*args, **(kwargs or {}))


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        o = q.new_empty(*q.shape[:-1], v.shape[-1])
        log_sum = q.new_empty(q.shape[:-1], dtype=torch.float32)
        ctx.save_for_backward(q, k, v, o, log_sum)
        return o

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v, *_rest = ctx.saved_tensors
        return torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)


def _without_routing(model: nn.Module) -> None:
    """Make the experts of a skeleton compute without looking at where tokens go.

    Which expert a token sees does not change how much is kept, only that it sees k of them.
    """

    def experts(module: Any, hidden: Tensor, index: Tensor, weights: Tensor) -> Tensor:
        x = hidden.repeat_interleave(index.shape[-1], 0)
        gate, up = F.linear(x, module.gate_up_proj[0]).chunk(2, dim=-1)
        y = F.linear(module.act_fn(gate) * up, module.down_proj[0]) * weights.reshape(-1, 1)
        return y.view(*index.shape, -1).sum(1)

    for module in model.modules():
        if isinstance(getattr(module, "gate_up_proj", None), nn.Parameter):
            module.forward = partial(experts, module)


def _key(tensor: Tensor) -> int:
    key: int = tensor.untyped_storage()._cdata
    return key


def _longest(steps: dict[int, int], left: int) -> int:
    """Extrapolate: what is kept grows by the same bytes with every token."""
    (short, at_short), (long, at_long) = sorted(steps.items())
    per_token = (at_long - at_short) / (long - short)
    return max(0, int(long + (left - at_long) / per_token))
