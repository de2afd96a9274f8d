"""Launches, syncs and bytes of real models' work on a GPU, counted on meta tensors."""

import sys
from functools import cache
from typing import Any

import torch
from torch import Tensor

from refine_server.kernels import dispatch
from refine_server.server.memory.device import RESERVE_SHARE
from refine_server.ttt.fast_weights import BASE, FastWeights
from refine_server.ttt.footprint import shares
from refine_server.ttt.interface.config import AdaptConfig
from refine_server.ttt.models.base import CausalLM
from refine_server.ttt.models.families.fla.delta_net import DeltaNet, DeltaNetConfig
from refine_server.ttt.models.state import State
from refine_server.ttt.refine.inputs.rows import Rows
from refine_server.ttt.refine.step import AdaptationRun, AdaptStep
from support import launches
from support.launches import counted

CONFIG = AdaptConfig()

FREE_BYTES = 79 * 2**30
"""What is free on an empty card of 80 GiB: the smallest that these models are meant for."""


@cache
def delta_net() -> CausalLM:
    """DeltaNet-1.3B."""
    config = DeltaNetConfig(hidden_size=2048, num_hidden_layers=24, vocab_size=32000, num_heads=16)
    with torch.device("meta"):
        return DeltaNet(config).to(torch.bfloat16)


@cache
def qwen() -> CausalLM:
    """A hybrid of the shape of Qwen3.5-9B: three gated delta-rule layers, one of attention."""
    from transformers import AutoModelForCausalLM
    from transformers.models.qwen3_5.configuration_qwen3_5 import Qwen3_5TextConfig

    from refine_server.ttt.models.loading.loader import wrap
    from refine_server.ttt.models.loading.own_kernels import without_fla

    with torch.device("meta"), without_fla():
        causal_lm = AutoModelForCausalLM.from_config(Qwen3_5TextConfig(), dtype=torch.bfloat16)
    return wrap(causal_lm)


def ids(tokens: int, rows: int = 1) -> Tensor:
    return torch.zeros(rows, tokens, dtype=torch.int64, device="meta")


def own_weights(model: CausalLM) -> FastWeights:
    settings = CONFIG.fast_weights
    return model.new_fast_weights(settings.targets, settings.rank, 0)


def activation_budget(model: CausalLM) -> int:
    """Return what a server with default settings gives to the activations of a step."""
    weights = sum(w.numel() * w.element_size() for w in model.parameters())
    return shares.for_activations(FREE_BYTES - FREE_BYTES // RESERVE_SHARE - weights)


def step(model: CausalLM, tokens: int) -> dict[str, Any]:
    """One REFINE step on a document, without the guard, as a server with defaults makes it."""
    model.activation_budget = activation_budget(model)
    with counted():
        make_step(begin(model, 256))  # the first one measures activations
    run = begin(model, tokens)
    with counted() as counts:
        make_step(run)
    [of_a_token] = model.activation_bytes.values()
    return {
        "launches": counts.total,
        "syncs": counts.syncs,
        "kept": of_a_token * tokens,
        "budget": model.activation_budget,
        "most": counts.launches.most_common(12),
    }


def begin(model: CausalLM, tokens: int) -> AdaptationRun:
    """Begin to adapt to a document."""
    rows = Rows(model, ids(tokens), own_weights(model), positions=CONFIG.rollouts.positions)
    return AdaptationRun.of(rows, rows.fast, CONFIG)


def make_step(run: AdaptationRun) -> None:
    """Make the first step."""
    [outcome] = AdaptStep.run_batch([AdaptStep(run, 1)])
    if isinstance(outcome, Exception):
        raise outcome


def read(model: CausalLM, tokens: int) -> dict[str, Any]:
    """One forward over a document, without a graph."""
    with counted(model.parameters()) as counts:
        model.read(ids(tokens), BASE)
    return {"launches": counts.total, "peak": counts.peak, "most": counts.launches.most_common(12)}


def decode(model: CausalLM, rows: int) -> dict[str, Any]:
    """One decoded token of adapted sequences."""
    with torch.no_grad():
        state = State.stack([model(ids(512), None, BASE).state] * rows)
        own = own_weights(model).to_dtype(model.dtype)  # as once for each answer
        fast = FastWeights.stack_lora([own] * rows)
        with counted() as counts:
            output = model(ids(1, rows), state, fast)
            model.head_logits(output.hidden[:, 0], fast).argmax(-1)
    return {"launches": counts.total, "most": counts.launches.most_common(12)}


def kept_by_the_gated_rule(tokens: int) -> float:
    """Bytes a token that one layer of Qwen3.5-9B's gated rule keeps for its gradient."""
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage()._cdata] = tensor.untyped_storage().nbytes()
        return tensor

    def leaf(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
        return torch.empty(shape, dtype=dtype, device="meta", requires_grad=True)

    q, k = (leaf(1, tokens, 16, 128).transpose(1, 2) for _ in "qk")
    v, beta = leaf(1, tokens, 32, 128).transpose(1, 2), leaf(1, tokens, 32).mT
    g = leaf(1, tokens, 32, 1, dtype=torch.float32).transpose(1, 2)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), counted():
        made = dispatch.delta_memory(q, k, v, g, beta, None)
    del made
    return sum(kept.values()) / tokens


def of_delta_net() -> dict[str, Any]:
    """Measure DeltaNet-1.3B."""
    return {
        "step": step(delta_net(), 12_288),
        "read": read(delta_net(), 12_288),
        "decode": decode(delta_net(), 1),
        "decode of 8": decode(delta_net(), 8),
    }


def of_qwen() -> dict[str, Any]:
    """Measure the hybrid."""
    return {
        "step": step(qwen(), 4_096),
        "read": read(qwen(), 12_288),
        "decode": decode(qwen(), 1),
        "kept by a layer, a token": kept_by_the_gated_rule(4_096),
    }


if __name__ == "__main__":
    launches.main({"delta_net": of_delta_net, "qwen": of_qwen}[sys.argv[1]])
