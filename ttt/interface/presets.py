"""Named sets of settings, which a request may choose by name and change field by field."""

import json
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Literal

Preset = Literal["fast", "balanced", "thorough", "paper"]

ON_EVIDENCE_RATE = 3e-4
"""Learning rate of steps on evidence: query projections are sensitive to larger ones."""

PRESETS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "fast": {
            "on": {"kind": "evidence"},
            "optimizer": {"steps": 2, "learning_rate": ON_EVIDENCE_RATE},
        },
        "balanced": {
            "on": {"kind": "evidence"},
            "optimizer": {"steps": 8, "learning_rate": ON_EVIDENCE_RATE},
        },
        "thorough": {
            "on": {"kind": "document"},
            "rollouts": {"per_position": 2},
            "optimizer": {"steps": 16},
            "guard": "held_out",
        },
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
        },
    }
)
"""Settings by preset, as the fields of ``AdaptConfig``; what is left out has its default.

``fast`` and ``balanced`` adapt query projections on the evidence for the query, in two and in
eight steps, whose time does not depend on the document's length. ``thorough`` adapts on the whole
document with twice the default's steps and rollouts, and needs no query; the guard ends it early.

``paper`` is test-time training as in arXiv 2602.16704 and its published code: one AdamW step on all
weights, with a constant learning rate, over the document and the question. There are c = 8
positions, n = 1 rollout of k = 5 tokens at each, and the reward is the share of right tokens.
"""


def parse_adapt(text: str) -> dict[str, Any]:
    """Return the fields of ``adapt`` that an option says: a preset by name, or a JSON object.

    Raises:
        ValueError: it is neither; the message says what it must be.
    """
    if text in PRESETS:
        return {"preset": text}
    try:
        fields = json.loads(text)
    except ValueError as error:
        raise ValueError(f"must be {_FORMS}; it is not valid JSON: {error}") from None
    if not isinstance(fields, dict):
        raise ValueError(f"must be {_FORMS}")
    return fields


_FORMS = f'a preset ({", ".join(PRESETS)}) or a JSON object such as {{"preset": "fast"}}'
