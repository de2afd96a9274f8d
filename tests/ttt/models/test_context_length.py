"""The longest sequence that a model was trained for, in every family."""

from typing import Any

import pytest
import torch

from refine_server.ttt.models import load
from refine_server.ttt.models.loading.loader import wrap
from support.small_models import Golden, make_toy, tiny_transformers

LINEAR = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}
YARN = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 256,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 128,
}
DELTA = {
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 16,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "head_dim": 16,
    "mlp_only_layers": [0, 1, 2, 3],
}
GEMMA3 = {
    "head_dim": 16,
    "sliding_window": 16,
    "layer_types": ["sliding_attention"] * 3 + ["full_attention"],
    "rope_parameters": {
        "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
        "full_attention": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 8.0},
    },
}


@pytest.mark.parametrize(
    ("model_type", "settings", "expected"),
    [
        pytest.param("llama", {}, 512, id="positions"),
        pytest.param("llama", {"rope_parameters": LINEAR}, 2048, id="linear scaling adds to them"),
        pytest.param("llama", {"rope_parameters": YARN}, 1024, id="yarn scales the original"),
        pytest.param("llama", {"rope_parameters": LLAMA3}, 512, id="llama3 has it included"),
        pytest.param("gemma3_text", GEMMA3, 512, id="scaling of one layer type is included"),
        pytest.param("mistral", {"sliding_window": 16}, None, id="windows in every layer"),
        pytest.param("mistral", {"sliding_window": 600}, 512, id="a window beyond the positions"),
        pytest.param("smollm3", {}, 512, id="some layers without positions"),
        pytest.param("qwen3_next", DELTA, 512, id="attention between delta-rule layers"),
    ],
)
def test_positions_windows_and_scaling(
    model_type: str, settings: dict[str, Any], expected: int | None
) -> None:
    model = wrap(tiny_transformers(model_type, max_position_embeddings=512, **settings))
    assert model.context_length == expected


def test_a_window_frees_a_model_of_its_positions() -> None:
    model = wrap(tiny_transformers("llama", max_position_embeddings=512))
    model.limit_window(600)
    assert model.context_length == 512
    model.limit_window(32)
    assert model.context_length is None


@pytest.mark.parametrize("name", ["delta_net", "gated_delta_net"])
def test_a_memory_of_constant_size_has_no_positions(name: str) -> None:
    golden = Golden(name)
    assert golden.config["max_position_embeddings"] == 512  # fla writes it, and does not read it
    assert golden.model().context_length is None


def test_lact_was_trained_for_its_positions_unless_its_memory_has_none() -> None:
    golden = Golden("lact_760m_style")
    assert golden.model().context_length == 512
    golden.config["ttt_nope"] = True
    assert golden.model().context_length is None


def test_a_family_of_ones_own_has_none_unless_it_says_so() -> None:
    assert make_toy(torch.float32).context_length is None


def test_the_bundled_models() -> None:
    assert load("tiny").context_length is None
    assert load("smollm2").context_length == 8192
