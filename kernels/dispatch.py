"""The only place that chooses which form of an op runs.

Every op has a ``naive`` form, which is its definition; where the definition is slow on a CPU, an
``eager`` form in torch's ops; and where a chain of small ops is slow on a GPU, a Triton form.
Tensors on a GPU go to Triton, tensors on a CPU to the eager form. The environment variable
``REFINE_KERNELS=naive|torch|triton`` forces one form everywhere, to find out whether a fast form is
at fault.
"""

import functools
import importlib
import importlib.util
import os
from collections.abc import Callable, Iterable
from typing import ParamSpec, TypeVar

import torch

from refine_server.kernels.attention import eager as attention_eager
from refine_server.kernels.attention import naive as attention_naive
from refine_server.kernels.batched_low_rank import eager as batched_low_rank_eager
from refine_server.kernels.batched_low_rank import naive as batched_low_rank_naive
from refine_server.kernels.cascade_attention import eager as cascade_attention_eager
from refine_server.kernels.cascade_attention import naive as cascade_attention_naive
from refine_server.kernels.delta_rule import eager as delta_rule_eager
from refine_server.kernels.delta_rule import naive as delta_rule_naive
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
from refine_server.kernels.token_stats import eager as token_stats_eager
from refine_server.kernels.token_stats import naive as token_stats_naive

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
    naive: Callable[P, R], eager: Callable[P, R] | None = None, *, triton: bool = False
) -> Callable[P, R]:
    """Return the op that runs the right one of its forms.

    Args:
        naive: the definition.
        eager: the form in torch's ops; None: the definition is fast enough.
        triton: whether the op's folder has a ``triton_impl`` as well.
    """
    fast = eager or naive
    if FORCED_FORM == "naive":
        return naive
    if FORCED_FORM == "torch" or not triton:
        return fast

    @functools.wraps(naive)
    def by_device(*args: P.args, **kwargs: P.kwargs) -> R:
        if FORCED_FORM == "triton" or _on_gpu(args):
            return _triton_form(naive)(*args, **kwargs)
        return fast(*args, **kwargs)

    return by_device


def _on_gpu(args: Iterable[object]) -> bool:
    """Return whether Triton serves these arguments: the first tensor is on a GPU and not fp64."""
    for arg in args:
        tensor = next(iter(arg), None) if isinstance(arg, list | tuple) else arg
        if isinstance(tensor, torch.Tensor):
            return tensor.is_cuda and tensor.dtype != torch.float64 and _has_triton()
    return False


@functools.cache
def _has_triton() -> bool:
    """Return whether Triton is installed: torch for CUDA brings it on Linux only."""
    return importlib.util.find_spec("triton") is not None


def _triton_form(naive: Callable[P, R]) -> Callable[P, R]:
    """Return the Triton form beside a definition; Triton is imported when it is first needed."""
    module = importlib.import_module(naive.__module__.removesuffix("naive") + "triton_impl")
    form: Callable[P, R] = getattr(module, naive.__name__)
    return form


attention = _choose(attention_naive.attention, attention_eager.attention)
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
l2_norm = _choose(rms_norm_naive.l2_norm, rms_norm_eager.l2_norm)
lact_apply = _choose(lact_swiglu_naive.lact_apply, lact_swiglu_eager.lact_apply, triton=True)
lact_gradient = _choose(
    lact_swiglu_naive.lact_gradient, lact_swiglu_eager.lact_gradient, triton=True
)
lact_update = _choose(lact_swiglu_naive.lact_update, triton=True)
rms_norm = _choose(rms_norm_naive.rms_norm, rms_norm_eager.rms_norm)
rollout_reward = _choose(rollout_reward_naive.rollout_reward, triton=True)
select_positions = _choose(select_positions_naive.select_positions, triton=True)
short_conv = _choose(short_conv_naive.short_conv, short_conv_eager.short_conv)
token_stats = _choose(token_stats_naive.token_stats, token_stats_eager.token_stats, triton=True)
