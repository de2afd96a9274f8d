"""The REFINE step as the paper's code does it: every rollout re-reads its prefix from token 0.

It exists to be compared with: ``refine.Loop`` must give the same gradient, and the benchmark says
how much sooner. Selection, rewards, advantages and losses are shared; reading is not.
"""

import torch
from torch import Tensor

from refine_server.kernels import dispatch
from refine_server.ttt.fast_weights import FastWeights
from refine_server.ttt.interface.config import AdaptConfig
from refine_server.ttt.models.base import CausalLM
from refine_server.ttt.refine.loss import Drawn, draw
from refine_server.ttt.refine.rollouts import beside, sample
from refine_server.ttt.refine.rows import Reading


def naive_gradient(
    model: CausalLM,
    rows: Reading,
    fast: FastWeights,
    config: AdaptConfig,
    generator: torch.Generator,
    drawn: Drawn | None = None,
) -> tuple[dict[str, Tensor], Tensor]:
    """Gradient of the REFINE loss with respect to ``fast``, and the branches' tokens [N, k].

    With ``drawn`` it is the gradient for those positions and tokens, whatever is drawn here: where
    many tokens are about equally likely, rounding alone makes two readings draw another one.

    Costs, with N = positions · branches of each: 1 forward for entropies, a prefix prefill for
    every rollout, N prefix forwards for old log-probabilities, 1 forward-backward for the
    next-token loss and N prefix forward-backwards for GRPO. ``rows`` must be a whole document
    ([1, T]) or spans, with the next-token loss on the same rows, and kl_coef 0.
    """
    leaves = fast.requires_grad_()
    with torch.no_grad():
        document_hidden = model(rows.input_ids, None, leaves).hidden
        stats = rows.stats(document_hidden, leaves)
    starts, noise = draw(rows, stats, config, generator)
    if drawn is not None:
        starts = drawn.starts
    sampled = _prefixes(rows.input_ids, starts, config.rollouts)
    tokens = torch.cat(
        [_roll_out(model, p, leaves, noise[i : i + 1], config) for i, p in enumerate(sampled)]
    )
    if config.demonstration:
        tokens = beside(tokens, rows.continuations(starts, config.rollout_tokens))
    if drawn is not None:
        tokens = drawn.tokens
    prefixes = _prefixes(rows.input_ids, starts, config.group)
    old, hidden = [], []
    with torch.no_grad():
        for prefix, own in zip(prefixes, tokens, strict=True):
            log_prob, h = _read(model, prefix, own, leaves, config)
            old.append(log_prob)
            hidden.append(h)
    _, advantages = dispatch.rollout_reward(
        config.reward, tokens, torch.cat(hidden), rows.input_ids, document_hidden, starts
    )

    for tensor in leaves.parameters():
        tensor.grad = None
    ntp = rows.stats(model(rows.input_ids, None, leaves).hidden, leaves).loss
    (config.ntp_coef * ntp).backward()
    for i, prefix in enumerate(prefixes):
        log_prob, _ = _read(model, prefix, tokens[i], leaves, config)
        term, _ = dispatch.grpo_loss(log_prob, old[i], advantages[i : i + 1])
        (config.grpo_coef * term / len(prefixes)).backward()
    gradient = {n: _grad(leaves[n]) for n in leaves}
    return gradient, tokens


def _prefixes(input_ids: Tensor, starts: Tensor, branches: int) -> list[Tensor]:
    """The tokens before each branch, [1, s] each, once for every branch."""
    return [
        input_ids[r : r + 1, : int(s)]
        for r, row in enumerate(starts)
        for s in row
        for _ in range(branches)
    ]


def _roll_out(
    model: CausalLM, prefix: Tensor, fast: FastWeights, noise: Tensor, config: AdaptConfig
) -> Tensor:
    with torch.no_grad():
        read = model(prefix, None, fast)
        temperature = config.rollout_temperature
        return sample(model, read.hidden[:, -1], read.state, fast, noise, temperature).tokens


def _read(
    model: CausalLM, prefix: Tensor, tokens: Tensor, fast: FastWeights, config: AdaptConfig
) -> tuple[Tensor, Tensor]:
    """Read prefix and rollout from token 0: log-probabilities [1, k] and hidden [1, k, D]."""
    k = tokens.shape[0]
    hidden = model(torch.cat([prefix, tokens[None]], dim=1), None, fast).hidden
    log_prob, _ = model.token_stats(
        hidden[:, -k - 1 : -1], tokens[None], fast, config.rollout_temperature
    )
    return log_prob, hidden[:, -k:]


def _grad(tensor: Tensor) -> Tensor:
    return torch.zeros_like(tensor) if tensor.grad is None else tensor.grad.clone()
