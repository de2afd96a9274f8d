"""Small random models, one of each family, in any dtype, and the types of their fixtures."""

import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import safe_open
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from refine_server.ttt.fast_weights import FastWeights
from refine_server.ttt.models import CausalLM, build, bundled
from refine_server.ttt.models.loading.loader import wrap
from support import checkpoints, toy_family

VOCABULARY = 96

MakeModel = Callable[[torch.dtype], CausalLM]
Families = dict[str, MakeModel]
MakeTransformers = Callable[..., Any]
Tokens = Callable[..., Tensor]
Perturbed = Callable[..., FastWeights]


class Golden:
    """The reference implementation's weights and outputs for one tiny model."""

    def __init__(self, name: str = "delta_net") -> None:
        path = Path(__file__).parents[1] / "data" / f"{name}.safetensors"
        with safe_open(path, "pt") as file:
            self.config: dict[str, Any] = json.loads(file.metadata()["config"])
            self.tensors: dict[str, Tensor] = {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118

    def under(self, prefix: str) -> dict[str, Tensor]:
        return {k.removeprefix(prefix): v for k, v in self.tensors.items() if k.startswith(prefix)}

    def model(self, dtype: torch.dtype = torch.float32) -> CausalLM:
        """Make our model with the reference's weights."""
        return build(self.config, {k: v.to(dtype) for k, v in self.under("weights.").items()})

    def errors(self) -> dict[str, float]:
        """Return the largest differences of our outputs and gradients from the reference's."""
        model, ids = self.model().requires_grad_(), self.tensors["input_ids"]
        output = model(ids)
        loss = F.cross_entropy(output.logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
        loss.backward()
        ours = {"logits": output.logits, "last_hidden_state": output.hidden, "loss": loss}
        ours |= {f"grad.{n}": p.grad for n, p in model.named_parameters()}
        return {
            name: float((ours[name].detach() - expected).abs().max())
            for name, expected in self.tensors.items()
            if name in ours
        }


LoadGolden = Callable[[str], Golden]


def make_golden(name: str, dtype: torch.dtype) -> CausalLM:
    return Golden(name).model(dtype)


def tiny_transformers(model_type: str, **settings: Any) -> Any:
    """Make a small model of transformers with random weights, also in norms and biases."""
    shape = {
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": VOCABULARY,
        "pad_token_id": None,
    }
    torch.manual_seed(0)
    config = AutoConfig.for_model(model_type, **{**shape, **settings})
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            scale = 0.1 if parameter.ndim == 1 else 0.2 * parameter.shape[-1] ** -0.5
            parameter += scale * torch.randn(parameter.shape)
    return model


def write_llama(directory: Path, **settings: Any) -> Path:
    """Write a small Llama with random weights and the tiny model's tokenizer into a directory."""
    settings = {"vocab_size": checkpoints.VOCABULARY, "eos_token_id": 0, **settings}
    tiny_transformers("llama", **settings).save_pretrained(directory)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(bundled.tiny() / file, directory / file)
    return directory


DELTA_HEADS = {
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 16,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "head_dim": 16,
}
LATENT = {
    "num_key_value_heads": 4,
    "linear_head_dim": 16,
    "linear_num_heads": 4,
    "kv_lora_rank": 24,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 16,
    "v_head_dim": 16,
    "layer_types": ["linear_attention", "full_attention"] * 2,
}
EXPERTS = {
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "shared_expert_intermediate_size": 32,
}
LATENT_EXPERTS = {
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "n_group": 2,
    "topk_group": 1,
}
TRANSFORMERS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {"tie_word_embeddings": True}),
    "llama with biases": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "llama3 rope": (
        "llama",
        {
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 10000.0,
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 32,
            }
        },
    ),
    "mistral": ("mistral", {"sliding_window": 16}),
    "ministral": ("ministral", {"sliding_window": 8, "head_dim": 16}),
    "qwen2": ("qwen2", {}),
    "qwen2 with windows": (
        "qwen2",
        {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 2},
    ),
    "qwen3": ("qwen3", {"head_dim": 24}),
    "gemma": ("gemma", {"head_dim": 16}),
    "gemma2": (
        "gemma2",
        {
            "head_dim": 16,
            "sliding_window": 8,
            "attn_logit_softcapping": None,
            "final_logit_softcapping": None,
        },
    ),
    "gemma3": (
        "gemma3_text",
        {
            "head_dim": 16,
            "sliding_window": 16,
            "query_pre_attn_scalar": 24,
            "layer_types": ["sliding_attention"] * 3 + ["full_attention"],
        },
    ),
    "olmo2": ("olmo2", {}),
    "olmo3": ("olmo3", {"sliding_window": 8}),
    "smollm3": ("smollm3", {}),
    "qwen3_next": ("qwen3_next", {**DELTA_HEADS, "mlp_only_layers": [0, 1, 2, 3]}),
    "qwen3_next with experts": ("qwen3_next", {**DELTA_HEADS, **EXPERTS}),
    "qwen3_5": ("qwen3_5_text", DELTA_HEADS),
    "olmo_hybrid": ("olmo_hybrid", {**DELTA_HEADS, "linear_num_key_heads": 4}),
    "olmo_hybrid with rope": (
        "olmo_hybrid",
        {
            **DELTA_HEADS,
            "linear_num_key_heads": 4,
            "layer_types": ["linear_attention", "full_attention"] * 2,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
        },
    ),
    "kimi_linear": ("kimi_linear", {**LATENT, "mlp_layer_types": ["dense"] * 4}),
    "kimi_linear with experts": ("kimi_linear", {**LATENT, **LATENT_EXPERTS, "q_lora_rank": 12}),
}
"""Small models of transformers: model type and settings."""


def make_wrapped(name: str, dtype: torch.dtype) -> CausalLM:
    model_type, settings = TRANSFORMERS[name]
    return wrap(tiny_transformers(model_type, **settings).to(dtype))


MOVING_AVERAGE = {
    "model_type": toy_family.MovingAverage.family,
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "intermediate_size": 96,
    "vocab_size": VOCABULARY,
}


def make_toy(dtype: torch.dtype) -> CausalLM:
    weights = checkpoints.random_weights(MOVING_AVERAGE)
    return build(MOVING_AVERAGE, {name: w.to(dtype) for name, w in weights.items()})


FAMILIES: Families = {
    "delta_net": partial(make_golden, "delta_net"),
    "gated_delta_net": partial(make_golden, "gated_delta_net"),
    "lact": partial(make_golden, "lact_760m_style"),
    "overlay": partial(make_wrapped, "llama"),
    "window": partial(make_wrapped, "mistral"),
    "gemma3": partial(make_wrapped, "gemma3"),
    "qwen3_next": partial(make_wrapped, "qwen3_next"),
    "qwen3_5": partial(make_wrapped, "qwen3_5"),
    "olmo_hybrid": partial(make_wrapped, "olmo_hybrid"),
    "kimi_linear": partial(make_wrapped, "kimi_linear"),
    "toy": make_toy,
}
