"""Compute what a model needs, without its weights: bytes by request, document and token.

The model is built on torch's meta device, which knows shapes and no numbers, and runs there: what
its forward keeps is counted instead of being restated in formulas.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx.experimental import _config
from torch.overrides import TorchFunctionMode

from refine_server.ttt.footprint import shares
from refine_server.ttt.footprint.estimate import MARGIN, PeakEstimator
from refine_server.ttt.interface.config import AdaptConfig, Targets
from refine_server.ttt.models.base import CausalLM, ModelError
from refine_server.ttt.models.families import native_family
from refine_server.ttt.models.loading.loader import (
    find,
    has_chat_template,
    model_type_of,
    read_config,
    wrap,
)
from refine_server.ttt.models.loading.own_kernels import without_fla

MEASURED = (1024, 2048)
"""Document lengths, in tokens, that are measured; others are extrapolated from the two."""
SHOWN = (1024, 4096, 16384)
"""Document lengths, in tokens, whose peaks are told."""
MOST_TOKENS = 2**30
ENOUGH_MEMORY = 2**50
"""A limit that recomputes nothing."""
RUNTIME_BYTES = 310 * 2**20
"""What Python, torch and the server take beside a model on a CPU."""
TRANSFORMERS_BYTES = 180 * 2**20
"""What transformers' own model classes take on top, where the family has none."""


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
    peak_bytes: dict[int, int]
    """Of the whole process while it adapts to one document, by the document's length in tokens."""
    memory_bytes: int
    """What the process may take."""
    longest_document: int
    """Tokens of the longest document that can be adapted to in it."""


def measure(
    name: str,
    *,
    memory_bytes: int = ENOUGH_MEMORY,
    dtype: torch.dtype | None = None,
    targets: Targets = "low_rank",
    rank: int = 8,
    lengths: Sequence[int] = SHOWN,
) -> Figures:
    """Measure a model by name, directory or hub id; of the hub, no weights are fetched.

    Raises:
        ModelError: it does not exist, or is of no supported family.
    """
    directory = find(name, weights=False)
    config = read_config(directory)
    model = _skeleton(config, directory, dtype or _dtype_of(config))
    with torch.no_grad():
        ids = torch.zeros(1, max(MEASURED), dtype=torch.int64, device="meta")
        states = {T: model(ids[:, :T]).state.nbytes for T in MEASURED}
    estimator = PeakEstimator(model, MEASURED)
    settings = AdaptConfig.model_validate({"fast_weights": {"targets": targets, "rank": rank}})
    weight_bytes = sum(p.nbytes for p in model.parameters())
    fixed = weight_bytes + RUNTIME_BYTES
    if native_family(model_type_of(config)) is None:
        fixed += TRANSFORMERS_BYTES
    room = memory_bytes - fixed
    with on_shapes_alone():
        estimator.adaptation(1, settings)  # measures, without a limit on activations
        model.activation_budget = max(shares.for_activations(room), 0)
        peaks = {T: int(MARGIN * estimator.adaptation(T, settings)) for T in lengths}
        longest = _longest(lambda T: MARGIN * estimator.adaptation(T, settings), room)
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
        fast_weight_bytes=model.new_fast_weights(targets, rank, 0).nbytes,
        state_bytes=states,
        peak_bytes={T: fixed + own for T, own in peaks.items()},
        memory_bytes=memory_bytes,
        longest_document=longest,
    )


@contextmanager
def on_shapes_alone() -> Iterator[None]:
    """Let the server's own code run on the meta device, where tensors have no numbers."""
    with (
        _config.patch(meta_nonzero_assume_all_nonzero=True),  # type: ignore[attr-defined]
        FusedAttention(),
    ):
        yield


def _longest(peak: Callable[[int], float], room: int) -> int:
    """Return the most tokens whose peak fits the memory for requests, by bisection."""
    low, high = 0, MOST_TOKENS
    while low < high:
        middle = (low + high + 1) // 2
        if peak(middle) <= shares.for_requests(room):
            low = middle
        else:
            high = middle - 1
    return low


def _skeleton(config: dict[str, Any], directory: Path, dtype: torch.dtype) -> CausalLM:
    """Build the model on the meta device."""
    family = native_family(model_type_of(config))
    if family is not None:
        return family.skeleton(config).to(dtype)
    from transformers import AutoConfig, AutoModelForCausalLM

    try:
        parsed = AutoConfig.from_pretrained(directory, trust_remote_code=False)
        with torch.device("meta"), without_fla():
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
