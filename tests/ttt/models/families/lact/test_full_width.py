"""Checkpoints as wide as the real ones, of one or two layers: they load, adapt and answer."""

from pathlib import Path
from typing import Any

import pytest

from refine_server.ttt.interface.config import (
    AdaptConfig,
    OptimizerConfig,
    RolloutConfig,
    SamplingConfig,
)
from refine_server.ttt.interface.events import AnswerCompleted
from refine_server.ttt.interface.requests import AnswerRequest
from refine_server.ttt.models import load
from refine_server.ttt.models.families import native_family
from refine_server.ttt.programs.start import perform
from support import checkpoints

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


@pytest.mark.parametrize(
    ("config", "layers", "words"),
    [(DELTA_NET_1_3B, 2, 40), (LACT_760M, 1, 1750)],
    ids=["DeltaNet-1.3B", "LaCT-760M"],
)
def test_a_checkpoint_of_full_width_adapts_and_answers(
    config: dict[str, Any], layers: int, words: int, tmp_path: Path
) -> None:
    """LaCT's document is longer than a chunk, so its memory is written."""
    few = config | {"num_hidden_layers": layers, "vocab_size": checkpoints.VOCABULARY}
    model = load(checkpoints.write(few, tmp_path))
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
def test_the_real_models_have_these_sizes(
    config: dict[str, Any], parameters: float, fast_weights: int
) -> None:
    model = native_family(config["model_type"]).skeleton(config)
    assert model.num_parameters == pytest.approx(parameters, rel=0.01)
    assert model.new_fast_weights("fast_weights", 8, 0).nbytes == fast_weights
