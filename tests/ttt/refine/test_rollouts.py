"""Rollouts and their groups, with and without a reference rollout."""

import pytest
import torch

from refine_server.kernels import dispatch
from refine_server.ttt.interface.config import AdaptConfig
from refine_server.ttt.models import CausalLM
from refine_server.ttt.models.tape import Graph
from refine_server.ttt.pieces import run_pieces
from refine_server.ttt.refine.inputs.rows import Prefix, Rows
from refine_server.ttt.refine.inputs.step_inputs import StepInputs
from refine_server.ttt.refine.rollouts import Policy, Rollouts, interleave
from refine_server.ttt.refine.step import AdaptationRun, StepDone
from support.small_models import Families, Perturbed, Tokens
from support.steps import loss_of, step_alone


@pytest.fixture
def model(families: Families) -> CausalLM:
    return families["delta_net"](torch.float64)


def config(**changes: object) -> AdaptConfig:
    defaults = {
        "rollouts": {"positions": 4, "per_position": 2, "tokens": 3, "demonstration": True},
        "fast_weights": {"targets": "fast_weights"},
        "guard": "none",
    }
    return AdaptConfig(**defaults).updated(**changes)


def first_step(document: Rows, settings: AdaptConfig) -> StepDone:
    outcome = step_alone(AdaptationRun.of(document, document.fast, settings))
    assert isinstance(outcome, StepDone)
    return outcome


def test_a_rollout_is_scored_as_it_was_sampled(
    model: CausalLM, tokens: Tokens, perturbed: Perturbed
) -> None:
    policy = Policy(model, perturbed(model), 0.7)
    read = model(tokens(2, 40), None, policy.fast)
    prefixes = Prefix(read.hidden[:, -1], read.state)
    noise = torch.rand(6, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    sampled = run_pieces(policy.sample(prefixes, noise))
    scored, hidden = run_pieces(policy.score(prefixes, sampled, Graph()))
    assert (sampled.shape, hidden.shape[:2]) == ((6, 5), (6, 5))
    token, state = prefixes.repeat(3)
    for j in range(5):  # token by token, as they were sampled
        log_prob = (model.head_logits(token, policy.fast) / 0.7).log_softmax(-1)
        own = log_prob.gather(-1, sampled[:, j, None])[:, 0]
        torch.testing.assert_close(scored[:, j], own, check_dtype=False)
        below = (log_prob.exp() * (torch.arange(log_prob.shape[1]) < sampled[:, j, None])).sum(-1)
        assert ((below <= noise[:, j]) & (noise[:, j] < below + own.exp() + 1e-9)).all()
        output = model(sampled[:, j, None], state, policy.fast)
        token, state = output.hidden[:, 0], output.state


@pytest.mark.parametrize("family", ["delta_net", "gated_delta_net", "overlay"])
@pytest.mark.parametrize("demonstration", [False, True])
def test_a_new_policy_is_as_likely_as_the_one_that_sampled_in_bf16(
    families: Families,
    tokens: Tokens,
    monkeypatch: pytest.MonkeyPatch,
    family: str,
    demonstration: bool,
) -> None:
    """What decoding rounds is not taken for a change of the policy, which clipping would judge."""
    ratios: list[torch.Tensor] = []

    def record(new: torch.Tensor, old: torch.Tensor, *others: torch.Tensor | None) -> object:
        ratios.append((new.detach().double() - old.double()).exp())
        return original(new, old, *others)

    original = dispatch.grpo_loss
    monkeypatch.setattr(dispatch, "grpo_loss", record)
    half = families[family](torch.float32).to(torch.bfloat16)
    fast = half.new_fast_weights("low_rank", 8, 0)
    document = Rows(half, tokens(1, 90), fast, positions=4)
    first_step(document, config(rollouts={"demonstration": demonstration}))
    [ratio] = ratios
    assert ratio.shape == (4 * (2 + demonstration), 3)
    assert (ratio - 1).abs().max() <= 1e-3


def test_the_same_noise_gives_the_same_rollout_in_any_batch(
    model: CausalLM, tokens: Tokens, perturbed: Perturbed
) -> None:
    policy = Policy(model, perturbed(model), 1.0)
    read = model(tokens(3, 40), None, policy.fast)
    noise = torch.rand(3, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    together = run_pieces(policy.sample(Prefix(read.hidden[:, -1], read.state), noise))
    for row, ids in enumerate(tokens(3, 40).split(1)):
        read = model(ids, None, policy.fast)
        alone = run_pieces(
            policy.sample(Prefix(read.hidden[:, -1], read.state), noise[row : row + 1])
        )
        assert torch.equal(alone[0], together[row])


def test_a_reference_rollout_is_the_last_of_its_group() -> None:
    sampled = torch.tensor([[1, 1], [2, 2], [3, 3], [4, 4]])
    tokens = interleave(sampled, torch.tensor([[8, 8], [9, 9]]))
    assert tokens[:, 0].tolist() == [1, 2, 8, 3, 4, 9]
    rollouts = Rollouts(starts=torch.tensor([[20, 40]]), tokens=tokens, sampled=2)
    assert rollouts.group == 3


def test_a_reference_rollout_teaches_where_no_sampled_one_is_right(
    model: CausalLM, tokens: Tokens, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Groups without reward have no gradient; a reference makes the document's tokens likelier."""
    starts = torch.tensor([[20, 40, 60, 80]])
    predicted = (starts[0, :, None] + torch.arange(3)).flatten() - 1

    def learned(demonstration: bool) -> tuple[float, list[float], list[float]]:
        settings = config(rollouts={"demonstration": demonstration}, loss={"ntp": 0.0, "grpo": 1.0})
        fast = model.new_fast_weights("fast_weights", 8, 0)
        document = Rows(model, tokens(1, 90), fast, positions=4)
        monkeypatch.setattr(document, "rollout_starts", lambda index, k: starts)
        before = document.token_stats(document.trunk(fast).hidden, fast).log_prob
        report = first_step(document, settings).report
        after = document.token_stats(document.trunk(fast).hidden, fast).log_prob
        return report.reward_mean, before[0, predicted].tolist(), after[0, predicted].tolist()

    reward, before, after = learned(demonstration=False)
    assert reward == 0.0
    assert before == after
    reward, before, after = learned(demonstration=True)
    assert reward == 0.0  # of the sampled rollouts alone
    assert sum(after) > sum(before) + 0.01


def test_a_reference_rollout_changes_nothing_where_every_sampled_one_is_right(
    model: CausalLM, tokens: Tokens, monkeypatch: pytest.MonkeyPatch
) -> None:
    fast = model.new_fast_weights("fast_weights", 8, 0)
    document = Rows(model, tokens(1, 90).fill_(7), fast, positions=4)
    right = torch.full((1, model.config.vocab_size), float("-inf"), dtype=torch.float64)
    right[0, 7] = 0.0
    monkeypatch.setattr(
        type(model), "head_logits", lambda self, hidden, fast: right.expand(len(hidden), -1)
    )
    settings = config(loss={"ntp": 0.0, "grpo": 1.0})
    loss = loss_of(StepInputs.of(document, fast, settings))
    assert loss.rewards.tolist() == [[1.0, 1.0]] * 4
    assert float(loss.grpo.detach()) == 0.0
    loss.total.backward()
    assert all(p.grad is None or not p.grad.any() for p in fast.parameters())


def test_only_sampled_rollouts_are_counted_and_reported(model: CausalLM, tokens: Tokens) -> None:
    fast = model.new_fast_weights("fast_weights", 8, 0)
    document = Rows(model, tokens(1, 90), fast, positions=4)
    report = first_step(document, config(loss={"kl": 0.1})).report
    assert report.rollout_tokens == 4 * 2 * 3
    assert report.reward_mean < 0.5  # a reference rollout earns 1
    assert report.kl == pytest.approx(0.0, abs=1e-9)
