"""The only place that chooses which form of an op runs.

Every op has a ``naive`` form, which is its definition; where the definition is slow on a CPU, an
``eager`` form in torch's ops; and where a chain of small ops is slow on a GPU, a Triton form.
Tensors on a GPU go to Triton, tensors on a CPU to the eager form. The delta rules go to
flash-linear-attention's kernels where these serve: on a GPU, in half precision. The environment
variable ``REFINE_KERNELS=naive|torch|triton`` forces one form everywhere, to find out whether a
fast form is at fault.
"""

import functools
import importlib
import importlib.util
import logging
import os
from collections.abc import Callable, Iterable
from typing import ParamSpec, TypeVar

import torch
from torch import Tensor

from refine_server.kernels.attention import eager as attention_eager
from refine_server.kernels.attention import naive as attention_naive
from refine_server.kernels.batched_low_rank import eager as batched_low_rank_eager
from refine_server.kernels.batched_low_rank import naive as batched_low_rank_naive
from refine_server.kernels.cascade_attention import eager as cascade_attention_eager
from refine_server.kernels.cascade_attention import naive as cascade_attention_naive
from refine_server.kernels.delta_rule import eager as delta_rule_eager
from refine_server.kernels.delta_rule import naive as delta_rule_naive
from refine_server.kernels.delta_rule.memory import BoundaryStates, Memory
from refine_server.kernels.fast_weight_optim import eager as fast_weight_optim_eager
from refine_server.kernels.fast_weight_optim import naive as fast_weight_optim_naive
from refine_server.kernels.gated_delta_rule import eager as gated_delta_rule_eager
from refine_server.kernels.gated_delta_rule import naive as gated_delta_rule_naive
from refine_server.kernels.grpo_loss import naive as grpo_loss_naive
from refine_server.kernels.lact_swiglu import eager as lact_swiglu_eager
from refine_server.kernels.lact_swiglu import naive as lact_swiglu_naive
from refine_server.kernels.rms_norm import eager as rms_norm_eager
from refine_server.kernels.rms_norm import naive as rms_norm_naive
from refine_server.kernels.rollout_reward import naive as rollout_reward_naive
from refine_server.kernels.select_positions import naive as select_positions_naive
from refine_server.kernels.short_conv import eager as short_conv_eager
from refine_server.kernels.short_conv import naive as short_conv_naive
from refine_server.kernels.swiglu import eager as swiglu_eager
from refine_server.kernels.swiglu import naive as swiglu_naive
from refine_server.kernels.token_stats import eager as token_stats_eager
from refine_server.kernels.token_stats import naive as token_stats_naive

logger = logging.getLogger(__name__)

P = ParamSpec("P")
R = TypeVar("R")

FORMS = ("naive", "torch", "triton")
"""Values of REFINE_KERNELS; ``torch`` stands for the eager forms."""


def _forced_form() -> str | None:
    """Return the form that the environment forces, or None: the device decides."""
    form = os.environ.get("REFINE_KERNELS")
    if form is not None and form not in FORMS:
        raise ValueError(f"REFINE_KERNELS must be one of {', '.join(FORMS)}, not {form!r}")
    if form == "triton" and not torch.cuda.is_available() and not _interpreted():
        raise ValueError(
            "REFINE_KERNELS=triton needs a CUDA device, or TRITON_INTERPRET=1 to run in Triton's "
            "interpreter (slow)"
        )
    return form


def _interpreted() -> bool:
    return os.environ.get("TRITON_INTERPRET") == "1"


FORCED_FORM = _forced_form()


def definitions_only() -> bool:
    """Return whether only definitions may run (``REFINE_KERNELS=naive``).

    A caller that computes an op itself, fused with its neighbours, must then call the op instead.
    """
    return FORCED_FORM == "naive"


def _choose(
    naive: Callable[P, R],
    eager: Callable[P, R] | None = None,
    *,
    triton: bool = False,
    gpu: tuple[str, Callable[P, bool]] | None = None,
) -> Callable[P, R]:
    """Return the op that runs the right one of its forms.

    Args:
        naive: the definition.
        eager: the form in torch's ops; None: the definition is fast enough.
        triton: whether the op's folder has a ``triton_impl`` as well.
        gpu: the name of another form for GPUs, and whether it serves given arguments.
    """
    fast = eager or naive
    if FORCED_FORM == "naive":
        return naive
    if FORCED_FORM == "torch" or not (triton or gpu):
        return fast

    @functools.wraps(naive)
    def by_device(*args: P.args, **kwargs: P.kwargs) -> R:
        if gpu is not None and gpu[1](*args, **kwargs):
            return _form(naive, gpu[0])(*args, **kwargs)
        if triton and (FORCED_FORM == "triton" or _on_gpu(args)):
            return _form(naive, "triton_impl")(*args, **kwargs)
        return fast(*args, **kwargs)

    return by_device


def _on_gpu(args: Iterable[object]) -> bool:
    """Return whether Triton serves these arguments: they are on a GPU, and not fp64.

    The first tensor of numbers decides; token ids before it say nothing about the type.
    """
    for arg in args:
        tensor = next(iter(arg), None) if isinstance(arg, list | tuple) else arg
        if isinstance(tensor, torch.Tensor) and tensor.is_floating_point():
            return _is_on_gpu(tensor) and tensor.dtype != torch.float64 and _has_triton()
    return False


def _is_on_gpu(tensor: Tensor) -> bool:
    return tensor.is_cuda


@functools.cache
def _has_triton() -> bool:
    """Return whether Triton is installed: torch for CUDA brings it on Linux only."""
    return importlib.util.find_spec("triton") is not None


def _form(naive: Callable[P, R], name: str) -> Callable[P, R]:
    """Return the form of that name beside a definition; it is imported when it is first needed."""
    module = importlib.import_module(naive.__module__.removesuffix("naive") + name)
    form: Callable[P, R] = getattr(module, naive.__name__)
    return form


def _is_half_on_gpu(x: Tensor) -> bool:
    return _is_on_gpu(x) and x.dtype in (torch.bfloat16, torch.float16)


FLASH_CHANNELS = 256
"""The most channels of a head that flash attention takes."""


def _flash_serves(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    prefix_k: Tensor | None = None,
    prefix_v: Tensor | None = None,
    prefix_length: Tensor | None = None,
    scale: float | None = None,
    window: int | None = None,
) -> bool:
    """Return whether attention needs several calls of flash attention, and these serve.

    A whole sequence without a prefix needs one call, which is torch's own choice.
    """
    continues = prefix_k is not None or k.shape[2] > q.shape[2]
    widths_fit = q.shape[3] == v.shape[3] <= FLASH_CHANNELS
    no_form_is_forced = FORCED_FORM is None
    return no_form_is_forced and _is_half_on_gpu(q) and continues and widths_fit and window is None


def _fla_takes(x: Tensor) -> bool:
    """Return whether fla's kernels compute with x: on a GPU, in half precision."""
    return FORCED_FORM is None and _is_half_on_gpu(x) and _has_fla()


@functools.cache
def _has_fla() -> bool:
    """Return whether flash-linear-attention is installed; warn, once, if it is not."""
    found = importlib.util.find_spec("fla") is not None
    if not found:
        logger.warning(
            "flash-linear-attention is not installed, so some layers run slower kernels on this "
            "GPU: pip install 'refine-server[gpu]'"
        )
    return found


attention = _choose(
    attention_naive.attention, attention_eager.attention, gpu=("flash", _flash_serves)
)
batched_low_rank = _choose(
    batched_low_rank_naive.batched_low_rank, batched_low_rank_eager.batched_low_rank, triton=True
)
cascade_attention = _choose(
    cascade_attention_naive.cascade_attention, cascade_attention_eager.cascade_attention
)
delta_rule = _choose(delta_rule_naive.delta_rule, delta_rule_eager.delta_rule, triton=True)
delta_states = _choose(delta_rule_naive.delta_states, delta_rule_eager.delta_states, triton=True)
fast_weight_optim = _choose(
    fast_weight_optim_naive.fast_weight_optim,
    fast_weight_optim_eager.fast_weight_optim,
    triton=True,
)
gated_delta_rule = _choose(
    gated_delta_rule_naive.gated_delta_rule, gated_delta_rule_eager.gated_delta_rule
)
grpo_loss = _choose(grpo_loss_naive.grpo_loss, triton=True)
l2_norm = _choose(
    rms_norm_naive.l2_norm, rms_norm_eager.l2_norm, gpu=("fla", lambda x, eps: _fla_takes(x))
)
lact_apply = _choose(lact_swiglu_naive.lact_apply, lact_swiglu_eager.lact_apply, triton=True)
lact_gradient = _choose(
    lact_swiglu_naive.lact_gradient, lact_swiglu_eager.lact_gradient, triton=True
)
lact_update = _choose(lact_swiglu_naive.lact_update, triton=True)
rms_norm = _choose(
    rms_norm_naive.rms_norm,
    rms_norm_eager.rms_norm,
    # One weight for all rows.
    gpu=("fla", lambda x, weight, eps: weight.ndim == 1 and _fla_takes(x)),
)
rollout_reward = _choose(rollout_reward_naive.rollout_reward, triton=True)
select_positions = _choose(select_positions_naive.select_positions, triton=True)
short_conv = _choose(short_conv_naive.short_conv, short_conv_eager.short_conv)
short_conv_silu = _choose(
    short_conv_naive.short_conv_silu,
    short_conv_eager.short_conv_silu,
    # The same taps for all rows.
    gpu=("fla", lambda padded, weight: weight.ndim == 2 and _fla_takes(padded)),
)
swiglu = _choose(
    swiglu_naive.swiglu, swiglu_eager.swiglu, gpu=("fla", lambda gate, up: _fla_takes(gate))
)
token_stats = _choose(token_stats_naive.token_stats, token_stats_eager.token_stats, triton=True)


def delta_memory(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor | None, beta: Tensor, state: Tensor | None
) -> tuple[Tensor, Memory]:
    """Run the gated delta rule, or the delta rule where g is None, with states for branches.

    Args:
        q, k: [B, Hk, T, K], H a multiple of Hk: heads share keys in groups.
        v: [B, H, T, V].
        g: [B, H, T, 1 | K], the log of the decay.
        beta: [B, H, T].
        state: [B, H, K, V], the memory before the first token; None: zeros.

    Returns:
        o [B, H, T, V], and the memories from which a branch may start.
    """
    if _fla_serves(q, g):
        return _fla_form()(q, k, v, g, beta, state)
    q, k = _shared_keys(q, v), _shared_keys(k, v)
    if g is None:
        o, states = delta_rule(q, k, v, beta, state)
    else:
        o, states = gated_delta_rule(q, k, v, g, beta, state)
    return o, BoundaryStates(states)


def delta_state(
    k: Tensor, v: Tensor, g: Tensor | None, beta: Tensor, state: Tensor | None
) -> Tensor:
    """Compute the memory [B, H, K, V] after the last token alone; arguments as ``delta_memory``."""
    if g is None and not _fla_serves(k, g):
        return delta_states(_shared_keys(k, v), v, beta, state)[:, :, -1]
    return delta_memory(k, k, v, g, beta, state)[1].last()


def _shared_keys(x: Tensor, v: Tensor) -> Tensor:
    """Repeat keys or queries [B, Hk, T, K] for the heads of v [B, H, T, V] that share them."""
    shared = v.shape[1] // x.shape[1]
    return x if shared == 1 else x.repeat_interleave(shared, 1)


FLA_CHANNELS = 256
"""The most channels of a key that fla's kernels take."""


def _fla_serves(k: Tensor, g: Tensor | None) -> bool:
    """Return whether fla's kernels compute a delta rule with these keys [B, Hk, T, K]."""
    by_head = g is None or g.shape[-1] == 1  # one decay for a head's whole memory
    return by_head and k.shape[-1] <= FLA_CHANNELS and _fla_takes(k)


@functools.cache
def _fla_form() -> Callable[..., tuple[Tensor, Memory]]:
    """Return fla's form of the rules; fla is imported when it is first needed."""
    module = importlib.import_module("refine_server.kernels.gated_delta_rule.fla")
    form: Callable[..., tuple[Tensor, Memory]] = module.gated_delta_rule
    return form
