"""What the LM head says of each token: log-probability of a target, entropy, likeliest token."""

from typing import NamedTuple

from torch import Tensor


class TokenStats(NamedTuple):
    """One number of each kind for each of N tokens; nats, at least fp32.

    log_prob: of the target, differentiable. entropy, lse (log-sum-exp of the logits) and argmax
    (token id of the highest logit) are not.
    """

    log_prob: Tensor
    entropy: Tensor
    lse: Tensor
    argmax: Tensor
