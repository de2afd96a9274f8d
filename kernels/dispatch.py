"""The only place that chooses which form of an op runs.

Every op has a ``naive`` form, which is its definition, and a ``torch`` form, which is fast on a
CPU. ``REFINE_KERNELS=naive`` forces the definitions (to find out whether a fast form is at fault).
"""

import os
from collections.abc import Callable
from typing import TypeVar

from refine_server.kernels.attention import naive as attention_naive
from refine_server.kernels.attention import torch as attention_torch
from refine_server.kernels.delta_rule import naive as delta_rule_naive
from refine_server.kernels.delta_rule import torch as delta_rule_torch
from refine_server.kernels.gated_delta_rule import naive as gated_delta_rule_naive
from refine_server.kernels.gated_delta_rule import torch as gated_delta_rule_torch
from refine_server.kernels.lact_swiglu import naive as lact_swiglu_naive
from refine_server.kernels.lact_swiglu import torch as lact_swiglu_torch
from refine_server.kernels.low_rank import naive as low_rank_naive
from refine_server.kernels.low_rank import torch as low_rank_torch
from refine_server.kernels.short_conv import naive as short_conv_naive
from refine_server.kernels.short_conv import torch as short_conv_torch
from refine_server.kernels.token_stats import naive as token_stats_naive
from refine_server.kernels.token_stats import torch as token_stats_torch

Op = TypeVar("Op", bound=Callable[..., object])

FORMS = ("naive", "torch")


def _chosen_form() -> str:
    form = os.environ.get("REFINE_KERNELS", "torch")
    if form not in FORMS:
        raise ValueError(f"REFINE_KERNELS must be one of {', '.join(FORMS)}, not {form!r}")
    return form


FORM = _chosen_form()


def _choose(naive: Op, torch: Op) -> Op:
    return {"naive": naive, "torch": torch}[FORM]


attention = _choose(attention_naive.attention, attention_torch.attention)
delta_rule = _choose(delta_rule_naive.delta_rule, delta_rule_torch.delta_rule)
gated_delta_rule = _choose(
    gated_delta_rule_naive.gated_delta_rule, gated_delta_rule_torch.gated_delta_rule
)
lact_apply = _choose(lact_swiglu_naive.lact_apply, lact_swiglu_torch.lact_apply)
lact_gradient = _choose(lact_swiglu_naive.lact_gradient, lact_swiglu_torch.lact_gradient)
low_rank = _choose(low_rank_naive.low_rank, low_rank_torch.low_rank)
short_conv = _choose(short_conv_naive.short_conv, short_conv_torch.short_conv)
token_stats = _choose(token_stats_naive.token_stats, token_stats_torch.token_stats)
