"""Checkpoints as wide as the real ones, of one or two layers: they load, adapt and answer."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from refine_server.ttt.interface.config import (
    AdaptConfig,
    OptimizerConfig,
    RolloutConfig,
    SamplingConfig,
)
from refine_server.ttt.interface.events import AnswerCompleted
from refine_server.ttt.interface.requests import AnswerRequest
from refine_server.ttt.models import bundled, load
from refine_server.ttt.models.loading.loader import FLA_LAYOUT
from refine_server.ttt.programs.start import perform

DELTA_NET_1_3B = {
    "model_type": "delta_net",
    "hidden_size": 2048,
    "num_hidden_layers": 24,
    "num_heads": 16,
    "hidden_ratio": 4,
    "vocab_size": 32000,
}
LACT_760M = {
    "model_type": "lact_swiglu",
    "hidden_size": 1536,
    "num_hidden_layers": 24,
    "num_attn_heads": 24,
    "num_lact_heads": 4,
    "lact_chunk_size": 2048,
    "window_size": 2048,
    "w0_w2_low_rank": 32,
    "rope_theta": 1000000,
    "vocab_size": 32000,
}


def checkpoint(config: dict, layers: int, target: Path) -> Path:
    """The configuration with few layers and the tiny model's vocabulary, and random weights."""
    vocabulary = json.loads((bundled.tiny() / "config.json").read_text())["vocab_size"]
    config = config | {"num_hidden_layers": layers, "vocab_size": vocabulary}
    family, parse = FLA_LAYOUT[config["model_type"]]
    with torch.device("meta"):
        names = family(parse.from_dict(config)).state_dict()
    weights = {
        name: torch.ones(w.shape) if "norm" in name else torch.randn(w.shape) * w.shape[-1] ** -0.5
        for name, w in names.items()
    }
    save_file(weights, target / "model.safetensors")
    (target / "config.json").write_text(json.dumps(config))
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(bundled.tiny() / file, target / file)
    return target


@pytest.mark.parametrize(
    ("config", "layers", "words"),
    [(DELTA_NET_1_3B, 2, 40), (LACT_760M, 1, 1750)],
    ids=["DeltaNet-1.3B", "LaCT-760M"],
)
def test_a_checkpoint_of_full_width_adapts_and_answers(config, layers, words, tmp_path) -> None:
    """LaCT's document is longer than a chunk, so its memory is written."""
    model = load(checkpoint(config, layers, tmp_path))
    text = "The harbour code is amber. " * (words // 5)
    request = AnswerRequest(
        text,
        "What is the harbour code?",
        AdaptConfig(
            rollouts=RolloutConfig(positions=2, tokens=3),
            optimizer=OptimizerConfig(steps=1),
            guard="none",
        ),
        SamplingConfig(max_tokens=3),
    )
    *_, last = perform(model, request)
    assert isinstance(last, AnswerCompleted)
    assert last.adaptation.accepted_step == 1
    assert last.usage.completion_tokens == 3
    if config is LACT_760M:
        assert last.usage.document_tokens > config["lact_chunk_size"]


@pytest.mark.parametrize(
    ("config", "parameters", "fast_weights"),
    [(DELTA_NET_1_3B, 1.37e9, 37_748_736), (LACT_760M, 0.80e9, 24 * 4 * 3 * 384**2 * 4)],
    ids=["DeltaNet-1.3B", "LaCT-760M"],
)
def test_the_real_models_have_these_sizes(config, parameters, fast_weights) -> None:
    family, parse = FLA_LAYOUT[config["model_type"]]
    with torch.device("meta"):
        model = family(parse.from_dict(config))
    assert model.num_parameters == pytest.approx(parameters, rel=0.01)
    assert model.new_fast_weights("fast_weights", 8, 0).nbytes == fast_weights
