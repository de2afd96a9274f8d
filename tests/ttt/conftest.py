"""Fixtures of small random models, their tokens and fast weights."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from refine_server.ttt.fast_weights import FastWeights
from refine_server.ttt.models import CausalLM
from support.small_models import (
    FAMILIES,
    TRANSFORMERS,
    VOCABULARY,
    Families,
    Golden,
    LoadGolden,
    MakeModel,
    MakeTransformers,
    Perturbed,
    Tokens,
    tiny_transformers,
)


@pytest.fixture(scope="session")
def golden() -> Golden:
    return Golden()


@pytest.fixture(scope="session")
def load_golden() -> LoadGolden:
    return Golden


@pytest.fixture(scope="session")
def make_transformers() -> MakeTransformers:
    return tiny_transformers


@pytest.fixture(scope="session")
def experts() -> dict[str, dict[str, Any]]:
    """Settings of the hybrids that have experts, by model type."""
    with_experts = (TRANSFORMERS[n] for n in TRANSFORMERS if n.endswith("with experts"))
    return dict(with_experts)


@pytest.fixture(params=TRANSFORMERS)
def transformers_model(request: pytest.FixtureRequest) -> Any:
    model_type, settings = TRANSFORMERS[request.param]
    return tiny_transformers(model_type, **settings)


@pytest.fixture(scope="session")
def families() -> Families:
    return FAMILIES


@pytest.fixture(params=FAMILIES)
def make_model(request: pytest.FixtureRequest) -> MakeModel:
    return FAMILIES[request.param]


@pytest.fixture
def model(make_model: MakeModel) -> CausalLM:
    return make_model(torch.float64)


def spelled(model: CausalLM) -> CausalLM:
    vocabulary = {chr(0x21 + n): n for n in range(model.embedding.num_embeddings)}
    backend = Tokenizer(models.WordLevel(vocabulary, "!"))
    backend.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    backend.decoder = decoders.Fuse()
    model.tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend)
    return model


@pytest.fixture(scope="session")
def spell() -> Callable[[CausalLM], CausalLM]:
    """Gives a model a tokenizer whose token n is spelled as the n-th character from a space."""
    return spelled


@pytest.fixture
def tokens() -> Tokens:
    def make(*shape: int, seed: int = 1) -> Tensor:
        return torch.randint(0, VOCABULARY, shape, generator=torch.Generator().manual_seed(seed))

    return make


@pytest.fixture
def perturbed() -> Perturbed:
    """Fast weights that differ from the base model in every tensor."""

    def make(model: CausalLM, targets: str = "fast_weights", seed: int = 1) -> FastWeights:
        generator = torch.Generator().manual_seed(seed)
        fast = model.new_fast_weights(targets, 8, seed)
        noise = {n: 0.05 * torch.randn(fast[n].shape, generator=generator) for n in fast}
        return FastWeights({n: fast[n] + noise[n].to(fast[n].dtype) for n in fast})

    return make
