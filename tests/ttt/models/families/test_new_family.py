"""CONTRIBUTING's recipe: a family that was added by one folder loads, adapts and answers.

The folder is ``tests/support/toy_family``. Being one of ``FAMILIES``, it also runs through every
test of a family: pieces, resuming, branches, batches, kept documents.
"""

from pathlib import Path

import pytest
import torch

from refine_server.ttt.footprint.figures import measure
from refine_server.ttt.interface.config import (
    AdaptConfig,
    OptimizerConfig,
    RolloutConfig,
    SamplingConfig,
)
from refine_server.ttt.interface.events import AnswerCompleted
from refine_server.ttt.interface.requests import AnswerRequest
from refine_server.ttt.models import ModelError, load
from refine_server.ttt.models.families import model_types
from refine_server.ttt.models.loading.convert import convert
from refine_server.ttt.programs.start import perform
from support import checkpoints
from support.toy_family import MovingAverage

CONFIG = {
    "model_type": "moving_average",
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "intermediate_size": 48,
    "vocab_size": checkpoints.VOCABULARY,
}


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return checkpoints.write(CONFIG, tmp_path)


def test_it_is_listed() -> None:
    assert model_types()["moving_average"] == ["moving_average"]


def test_a_directory_loads_adapts_and_answers(directory: Path) -> None:
    model = load(directory)
    assert isinstance(model, MovingAverage)
    request = AnswerRequest(
        "The harbour code is amber. " * 8,
        "What is the harbour code?",
        AdaptConfig(
            rollouts=RolloutConfig(positions=2), optimizer=OptimizerConfig(steps=2), guard="none"
        ),
        SamplingConfig(max_tokens=3),
    )
    before = model.fingerprint()
    *_, last = perform(model, request)
    assert isinstance(last, AnswerCompleted)
    assert last.adaptation.accepted_step == 2
    assert last.adaptation.final_ntp_loss < last.adaptation.first_ntp_loss
    assert last.usage.completion_tokens == 3
    assert model.fingerprint() == before


def test_it_is_inspected_and_converted(directory: Path, tmp_path: Path) -> None:
    figures = measure(str(directory))
    assert figures.family == "moving_average"
    assert len(set(figures.state_bytes.values())) == 1
    convert(str(directory), tmp_path / "half", torch.bfloat16)
    assert load(tmp_path / "half").dtype == torch.bfloat16


def test_what_its_states_can_do_is_what_the_model_can_do(directory: Path) -> None:
    model = load(directory)
    assert model.stacks_states
    assert model.joins_segments
    assert not model.truncates_states


def test_unsupported_settings_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="moving_average: gate_activation='relu'"):
        checkpoints.write(CONFIG | {"gate_activation": "relu"}, tmp_path)
    with pytest.raises(ModelError, match="window: the family moving_average"):
        load(checkpoints.write(CONFIG, tmp_path), window=16)
