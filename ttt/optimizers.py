"""One optimiser for each request, over its own fast weights."""

import torch

from refine_server.ttt.config import AdaptConfig
from refine_server.ttt.fast_weights import FastWeights


def make_optimizer(config: AdaptConfig, fast: FastWeights) -> torch.optim.Optimizer:
    """AdamW or SGD without weight decay: a copy that starts at the base weights must not shrink."""
    if config.optimizer == "sgd":
        return torch.optim.SGD(fast.parameters(), lr=config.learning_rate)
    return torch.optim.AdamW(fast.parameters(), lr=config.learning_rate, weight_decay=0.0)
