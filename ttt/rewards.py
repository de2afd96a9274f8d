"""Self-supervised rewards: how close a rollout came to the document's own continuation."""

import torch.nn.functional as F
from torch import Tensor

from refine_server.ttt.config import Reward


def rewards(
    kind: Reward,
    tokens: Tensor,
    document_tokens: Tensor,
    hidden: Tensor,
    document_hidden: Tensor,
) -> Tensor:
    """One scalar for each rollout (arXiv 2602.16704, section 3.3).

    Args:
        kind: ``exact`` is the mean of [token equal], ``cosine`` the mean cosine of hidden states,
            ``hybrid`` their sum.
        tokens, document_tokens: [N, k].
        hidden, document_hidden: [N, k, D].

    Returns:
        [N], at least fp32, without graph.
    """
    exact = (tokens == document_tokens).float().mean(-1)
    if kind == "exact":
        return exact
    cosine = F.cosine_similarity(hidden.detach().float(), document_hidden.detach().float(), dim=-1)
    return cosine.mean(-1) + (exact if kind == "hybrid" else 0.0)
