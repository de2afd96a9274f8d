"""Small random models: one of each family, in any dtype."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors import safe_open
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM

from refine_server.ttt.fast_weights import FastWeights
from refine_server.ttt.models import CausalLM, build
from refine_server.ttt.models.overlay import Overlay

VOCABULARY = 96


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
        """Our model with the reference's weights."""
        return build(self.config, {k: v.to(dtype) for k, v in self.under("weights.").items()})

    def errors(self) -> dict[str, float]:
        """Largest differences of our model's outputs and gradients from the reference's."""
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


@pytest.fixture(scope="session")
def golden() -> Golden:
    return Golden()


@pytest.fixture(scope="session")
def load_golden() -> Callable[[str], Golden]:
    return Golden


def make_golden(name: str, dtype: torch.dtype) -> CausalLM:
    return Golden(name).model(dtype)


def make_overlay(dtype: torch.dtype) -> CausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=VOCABULARY,
        tie_word_embeddings=True,
    )
    return Overlay(LlamaForCausalLM(config).to(dtype))


def make_window(dtype: torch.dtype) -> CausalLM:
    torch.manual_seed(0)
    config = MistralConfig(
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=VOCABULARY,
        sliding_window=16,
    )
    return Overlay(MistralForCausalLM(config).to(dtype))


FAMILIES: dict[str, Callable[[torch.dtype], CausalLM]] = {
    "delta_net": partial(make_golden, "delta_net"),
    "gated_delta_net": partial(make_golden, "gated_delta_net"),
    "lact": partial(make_golden, "lact_760m_style"),
    "overlay": make_overlay,
    "window": make_window,
}


@pytest.fixture(params=FAMILIES)
def make_model(request: pytest.FixtureRequest) -> Callable[[torch.dtype], CausalLM]:
    return FAMILIES[request.param]


@pytest.fixture
def model(make_model: Callable[[torch.dtype], CausalLM]) -> CausalLM:
    return make_model(torch.float64)


@pytest.fixture
def tokens() -> Callable[..., Tensor]:
    def make(*shape: int, seed: int = 1) -> Tensor:
        return torch.randint(0, VOCABULARY, shape, generator=torch.Generator().manual_seed(seed))

    return make


@pytest.fixture
def perturbed() -> Callable[..., FastWeights]:
    """Fast weights that differ from the base model in every tensor."""

    def make(model: CausalLM, targets: str = "fast_weights", seed: int = 1) -> FastWeights:
        generator = torch.Generator().manual_seed(seed)
        fast = model.new_fast_weights(targets, 8, seed)
        noise = {n: 0.05 * torch.randn(fast[n].shape, generator=generator) for n in fast}
        return FastWeights({n: fast[n] + noise[n].to(fast[n].dtype) for n in fast})

    return make
