"""Named sets of settings, which a request may choose by name and change field by field."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Literal

Preset = Literal["paper"]

PRESETS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "paper": {
            "objective": "refine",
            "on": {"kind": "prompt"},
            "rollouts": {
                "positions": 8,
                "per_position": 1,
                "tokens": 5,
                "temperature": 1.0,
                "select": "entropy",
                "reward": "exact",
                "demonstration": False,
            },
            "loss": {"ntp": 1.0, "grpo": 0.4, "kl": 0.0},
            "optimizer": {
                "steps": 1,
                "learning_rate": 1e-6,
                "weight_decay": 0.01,
                "max_grad_norm": 1.0,
            },
            "fast_weights": {"targets": "all"},
            "guard": "none",
        }
    }
)
"""Settings by preset, as the fields of ``AdaptConfig``; what is left out has its default.

``paper`` is test-time training as in arXiv 2602.16704 and its published code: one AdamW step on all
weights, with a constant learning rate, over the document and the question. There are c = 8
positions, n = 1 rollout of k = 5 tokens at each, and the reward is the share of right tokens.
"""
