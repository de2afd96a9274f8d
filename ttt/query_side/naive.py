"""A query-side step that reads every prefix again from token 0, under the base weights.

It is what a step on a ``FrozenDocument`` is compared with: the gradients must be the same. Nothing
is kept of the document, so each span and each rollout begins with a base reading of all that stands
before it; only the span's or the rollout's own tokens are then read under the fast weights.
"""

import torch
from torch import Tensor

from refine_server.kernels import dispatch
from refine_server.ttt.fast_weights import BASE
from refine_server.ttt.models.output import Output
from refine_server.ttt.models.state import State
from refine_server.ttt.query_side.frozen_spans import FrozenSpans
from refine_server.ttt.refine.inputs.step_inputs import StepInputs
from refine_server.ttt.refine.rollouts import Policy, Rollouts


def naive_gradient(request: StepInputs, rows: FrozenSpans, rollouts: Rollouts) -> dict[str, Tensor]:
    """Compute the gradient of one request's loss, for given positions and rollouts.

    Args:
        request: its rows are ``rows``; its loss has no KL term.
        rows: spans of a document.
        rollouts: of these rows, N continuations of k tokens in all.

    Returns:
        The gradient by name, like the fast weights.
    """
    config, fast, model = request.config, request.fast, request.model
    policy = Policy(model, fast, config.rollouts.temperature)
    for tensor in fast.parameters():
        tensor.grad = None

    # Next-token loss: each span behind a new reading of the document before it.
    hidden = torch.cat([_read_row(rows, row, request) for row in range(len(rows.begins))])
    stats = rows.token_stats(hidden, fast)  # of hidden [S, 1 + L, D]
    total = config.loss.ntp * stats.ntp_loss

    # GRPO: each rollout behind a new reading, with the one token before it under ``fast``.
    n, G = rollouts.group, rollouts.starts.shape[1]
    log_probs, hiddens = [], []
    for index, tokens in enumerate(rollouts.tokens):
        row, start = index // n // G, int(rollouts.starts.flatten()[index // n])
        state = _state_before(rows, int(rows.begins[row]) + start - 1)
        own = torch.cat([rows.input_ids[row, start - 1 : start], tokens])[None]  # [1, 1 + k]
        after = model(own, state, fast).hidden  # [1, 1 + k, D]
        log_prob, _ = model.token_stats(after[:, :-1], own[:, 1:], fast, policy.temperature)
        log_probs.append(log_prob)
        hiddens.append(after[:, 1:])
    log_prob = torch.cat(log_probs)  # [N, k]
    _, advantages = dispatch.rollout_reward(
        config.rollouts.reward,
        rollouts.tokens,
        torch.cat(hiddens).detach(),
        rows.input_ids,
        hidden.detach(),
        rollouts.starts,
    )  # [N]
    grpo, _ = dispatch.grpo_loss(log_prob, log_prob.detach(), advantages)
    total = total + config.loss.grpo * grpo
    if request.attention is not None:
        total = total + config.loss.attention * request.attention.loss(fast)
    total.backward()
    return {name: _grad(fast[name]) for name in fast}


def _read_row(rows: FrozenSpans, row: int, request: StepInputs) -> Tensor:
    """Read a row behind a new reading of what stands before it: hidden [1, 1 + L, D]."""
    state = _state_before(rows, int(rows.begins[row]))
    output: Output = rows.model(rows.input_ids[row : row + 1], state, request.fast)
    return output.hidden


@torch.no_grad()
def _state_before(rows: FrozenSpans, position: int) -> State:
    """Read the document's tokens before a position under the base weights."""
    output: Output = rows.model(rows.document.input_ids[:, :position], None, BASE)
    return output.state


def _grad(tensor: Tensor) -> Tensor:
    return torch.zeros_like(tensor) if tensor.grad is None else tensor.grad
