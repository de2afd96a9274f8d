"""The delta rule by the kernels of flash-linear-attention: the gated rule without a gate."""

from torch import Tensor

from refine_server.kernels.delta_rule.memory import Memory
from refine_server.kernels.gated_delta_rule import fla as gated


def delta_rule(
    q: Tensor, k: Tensor, v: Tensor, beta: Tensor, state: Tensor | None = None
) -> tuple[Tensor, Memory]:
    """Compute ``naive.delta_rule`` in chunks, its states when they are asked for.

    Arguments and results are those of ``gated_delta_rule.fla``, without g.
    """
    return gated.gated_delta_rule(q, k, v, None, beta, state)
