"""Checkpoints of native families with random weights."""

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from refine_server.ttt.models import bundled
from refine_server.ttt.models.families import native_family

VOCABULARY: int = json.loads((bundled.tiny() / "config.json").read_text())["vocab_size"]
"""Vocabulary size of the tiny model, whose tokenizer ``write`` adds to the weights."""


def random_weights(config: dict[str, Any], seed: int = 0) -> dict[str, Tensor]:
    """Draw weights for a configuration; those of norms are 1."""
    generator = torch.Generator().manual_seed(seed)
    family = native_family(config["model_type"])
    assert family is not None
    return {
        name: torch.ones(w.shape)
        if "norm" in name
        else torch.randn(w.shape, generator=generator) * w.shape[-1] ** -0.5
        for name, w in family.skeleton(config).state_dict().items()
    }


def write(config: dict[str, Any], directory: Path) -> Path:
    """Write a checkpoint with the tiny model's tokenizer into a directory."""
    save_file(random_weights(config), directory / "model.safetensors")
    (directory / "config.json").write_text(json.dumps(config))
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(bundled.tiny() / file, directory / file)
    return directory
