"""Rollouts: what the policy writes from the selected positions on (arXiv 2602.16704, section 3.2).

They branch off the trunk: each starts from the state that the trunk has at its position, so no
prefix is read again. They form groups, one for each position: n sampled rollouts and then, if the
configuration says so, a reference rollout, which is the document's own continuation.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from refine_server.kernels import dispatch
from refine_server.ttt.fast_weights import BASE, FastWeights
from refine_server.ttt.models.base import CausalLM
from refine_server.ttt.models.segments import token_stats_in_pieces, trunk_in_pieces
from refine_server.ttt.models.tape import Graph
from refine_server.ttt.models.trunk import Frozen
from refine_server.ttt.pieces import Pieces
from refine_server.ttt.refine.inputs.row_batch import RequestTrunk
from refine_server.ttt.refine.inputs.rows import Prefix
from refine_server.ttt.refine.inputs.step_inputs import StepInputs


@dataclass(frozen=True, slots=True)
class Policy:
    """A model under R requests' fast weights, as a policy that writes tokens at a temperature τ."""

    model: CausalLM
    fast: FastWeights
    temperature: float

    @torch.no_grad()
    def sample(self, prefixes: Prefix, noise: Tensor) -> Pieces[Tensor]:
        """Continue P prefixes n times each by k sampled tokens, each token a piece of work.

        Args:
            prefixes: P of them; those of one request are neighbours.
            noise: [P n, k] uniform in [0, 1). One number decides one token, so the same noise gives
                the same rollout in any batch, as far as the logits are the same: a GPU rounds them
                differently in batches of another size.

        Returns:
            [P n, k] tokens.
        """
        n = noise.shape[0] // prefixes.hidden.shape[0]
        hidden, state = prefixes.detach().repeat(n)  # [P n, D]
        tokens: list[Tensor] = []
        for j in range(noise.shape[1]):
            if j > 0:
                yield
                output = self.model(tokens[-1][:, None], state, self.fast)
                hidden, state = output.hidden[:, 0], output.state
            wide = torch.promote_types(hidden.dtype, torch.float32)
            logits = self.model.head_logits(hidden, self.fast).to(wide)
            p = (logits / self.temperature).softmax(-1)  # [P n, V]
            tokens.append(_inverse_cdf(p, noise[:, j, None]))
        return torch.stack(tokens, dim=1)

    def score(
        self, prefixes: Prefix, tokens: Tensor, graph: Graph
    ) -> Pieces[tuple[Tensor, Tensor]]:
        """Compute the log-probabilities of given continuations in one forward, in the graph.

        Args:
            prefixes: P of them.
            tokens: [N, k]; N is a multiple of P, the continuations of one prefix are neighbours.
            graph: its parts end with the results.

        Returns:
            Log-probabilities [N, k] of the tokens, and their final hidden states [N, k, D].
        """
        n = tokens.shape[0] // prefixes.hidden.shape[0]
        before, state = graph.cut(lambda: prefixes.repeat(n))  # [N, D]
        frozen = Frozen(tokens, None, (), 0)
        trunk = yield from trunk_in_pieces(self.model, frozen, self.fast, state, graph)
        hidden = trunk.hidden  # [N, k, D]
        predicting = graph.cut(lambda: torch.cat([before[:, None], hidden[:, :-1]], dim=1))
        log_prob, _ = yield from token_stats_in_pieces(
            self.model, predicting, tokens, self.fast, graph, self.temperature
        )
        return log_prob, hidden


@dataclass(frozen=True, kw_only=True, slots=True)
class Rollouts:
    """Continuations of k tokens each, in P groups, one for each position."""

    starts: Tensor
    """[R S, G], where the groups start in their rows; P = R S G."""
    tokens: Tensor
    """[N, k], N = P times the size of a group."""
    sampled: int
    """n: how many of each position's continuations were sampled."""

    @property
    def group(self) -> int:
        """How many continuations each position has: n, or n + 1 with a reference rollout."""
        return self.tokens.shape[0] // self.starts.numel()

    def split(self, requests: int) -> list["Rollouts"]:
        """Return each request's own groups."""
        parts = zip(self.starts.chunk(requests), self.tokens.chunk(requests), strict=True)
        return [Rollouts(starts=s, tokens=t, sampled=self.sampled) for s, t in parts]


@dataclass(frozen=True, kw_only=True, slots=True)
class Scores:
    """What the policy that is adapted computes for N rollouts of k tokens."""

    log_prob: Tensor
    """[N, k], in the graph."""
    hidden: Tensor
    """[N, k, D]."""

    @property
    def old_log_prob(self) -> Tensor:
        """[N, k], under the policy that sampled, without graph.

        Every step samples anew and is made at once, so that is the policy itself: the ratio is 1,
        and so it is of a reference rollout. The log-probabilities that decoding token by token
        computes would differ by its rounding, in bf16 by several percent.
        """
        return self.log_prob.detach()

    def split(self, requests: int) -> list["Scores"]:
        """Return each request's own rollouts' scores."""
        parts = zip(self.log_prob.chunk(requests), self.hidden.chunk(requests), strict=True)
        return [Scores(log_prob=p, hidden=h) for p, h in parts]


def rollout_noise(request: StepInputs, starts: Tensor) -> Tensor:
    """Draw the numbers that decide a request's rollouts from starts [S, G]: [S G n, k]."""
    count, k = starts.numel() * request.config.rollouts.per_position, request.config.rollouts.tokens
    noise = torch.rand(count, k, generator=request.generator, dtype=torch.float64)
    return noise.to(starts.device)


def sample_rollouts(
    policy: Policy, prefixes: Prefix, starts: Tensor, noise: Tensor, references: Tensor | None
) -> Pieces[Rollouts]:
    """Sample n rollouts of k tokens from each of P prefixes.

    Args:
        policy: writes them.
        prefixes: P = R S G of them, those before ``starts``.
        starts: [R S, G].
        noise: [P n, k], from ``rollout_noise``.
        references: [P, k], a reference rollout for each group, or None.
    """
    tokens = yield from policy.sample(prefixes, noise)
    sampled = len(tokens) // starts.numel()
    if references is not None:
        tokens = interleave(tokens, references)
    return Rollouts(starts=starts, tokens=tokens, sampled=sampled)


def score_rollouts(
    policy: Policy, prefixes: Prefix, rollouts: Rollouts, graph: Graph
) -> Pieces[Scores]:
    """Compute the rollouts' log-probabilities and hidden states in the graph of their prefixes."""
    log_prob, hidden = yield from policy.score(prefixes, rollouts.tokens, graph)
    return Scores(log_prob=log_prob, hidden=hidden)


def reward_rollouts(
    request: StepInputs, trunk: RequestTrunk, rollouts: Rollouts, scores: Scores
) -> tuple[Tensor, Tensor]:
    """Reward one request's rollouts for what its document has in their place (section 3.3).

    Returns:
        Rewards [N], and their group-relative advantages [N] (section 3.4), without graph.
    """
    ids = trunk.rows.input_ids
    return dispatch.rollout_reward(
        request.config.rollouts.reward,
        rollouts.tokens,
        scores.hidden,
        ids,
        trunk.hidden,
        rollouts.starts,
    )


@torch.no_grad()
def base_log_prob(request: StepInputs, rollouts: Rollouts) -> Pieces[Tensor | None]:
    """Compute a request's rollouts' log-probabilities [N, k] under the unadapted policy.

    None where the loss has no KL term.
    """
    if not request.config.loss.kl:
        return None
    base = Policy(request.model, BASE, request.config.rollouts.temperature)
    rows = request.rollout_rows
    trunk = yield from rows.read_base()
    prefixes = rows.prefixes(trunk, rollouts.starts, BASE)
    log_prob, _ = yield from base.score(prefixes, rollouts.tokens, Graph())
    return log_prob


def interleave(sampled: Tensor, references: Tensor) -> Tensor:
    """Put one of references [P, k] behind each group of sampled [P n, k]: [P (n + 1), k]."""
    groups = sampled.unflatten(0, (references.shape[0], -1))
    return torch.cat([groups, references[:, None]], dim=1).flatten(0, 1)


def _inverse_cdf(p: Tensor, noise: Tensor) -> Tensor:
    """Sample by inverting the cumulative distribution: p [N, V], noise [N, 1] -> [N].

    In fp64: a vocabulary's probabilities are so small that the rounding of an fp32 sum would choose
    another token in another batch.
    """
    cumulative = p.double().cumsum(-1)
    target = noise.to(p.dtype) * cumulative[:, -1:]
    return torch.searchsorted(cumulative, target, right=True)[:, 0].clamp_max(p.shape[1] - 1)
