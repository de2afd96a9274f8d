"""What the LM head says of each token: log-probability of a target, entropy, normaliser."""

from typing import NamedTuple

from torch import Tensor


class TokenStats(NamedTuple):
    """One number of each kind for each of N tokens; nats, at least fp32.

    log_prob: of the target, differentiable. entropy and lse (log-sum-exp of the logits) are not.
    """

    log_prob: Tensor
    entropy: Tensor
    lse: Tensor
