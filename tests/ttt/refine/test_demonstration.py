"""A demonstration in each group of rollouts: exact, silent where all are right, and no sample."""

import pytest
import torch

from refine_server.ttt.interface.config import AdaptConfig
from refine_server.ttt.refine.loop import Loop
from refine_server.ttt.refine.naive import naive_gradient
from refine_server.ttt.refine.rollouts import beside
from refine_server.ttt.refine.rows import Reading

TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5}


def config(**changes) -> AdaptConfig:
    defaults = {
        "demonstration": True,
        "chunks": 4,
        "rollouts": 2,
        "rollout_tokens": 3,
        "targets": "fast_weights",
        "guard": "none",
    }
    return AdaptConfig(**(defaults | changes))


def gradient(loop: Loop) -> dict[str, torch.Tensor]:
    loop.loss().total.backward()
    fast = loop.fast
    return {n: torch.zeros_like(fast[n]) if fast[n].grad is None else fast[n].grad for n in fast}


def assert_exact(loop: Loop, tolerance: float) -> torch.Tensor:
    """The loop's gradient is the naive loop's; gives the branches' tokens [N, k]."""
    ours = gradient(loop)
    generator = torch.Generator().manual_seed(loop.config.seed)
    naive, tokens = naive_gradient(loop.model, loop.document, loop.fast, loop.config, generator)
    difference = sum((ours[n] - naive[n]).square().sum() for n in naive)
    assert float((difference / sum(g.square().sum() for g in naive.values())).sqrt()) <= tolerance
    return tokens


@pytest.mark.parametrize("dtype", TOLERANCE, ids=["fp64", "fp32"])
@pytest.mark.parametrize(
    "changes",
    [
        {"rollouts": 1, "rollout_tokens": 1},
        {"reward": "hybrid", "rollout_temperature": 0.7},
        {"reward": "cosine", "rollouts": 1, "rollout_tokens": 5},
    ],
    ids=["one", "hybrid", "cosine"],
)
@pytest.mark.parametrize("family", ["delta_net", "lact", "overlay"])
def test_gradient_equals_the_naive_loop(
    families, family, dtype, tokens, perturbed, changes
) -> None:
    model, settings = families[family](dtype), config(**changes)
    fast = perturbed(model)
    document = Reading(model, tokens(1, 131), fast, positions=4)
    branches = assert_exact(Loop(model, document, fast, settings), TOLERANCE[dtype])
    assert branches.shape == (4 * (settings.rollouts + 1), settings.rollout_tokens)


@pytest.mark.parametrize("start", [20, 63, 64, 147])
def test_gradient_is_exact_at_edges(families, tokens, perturbed, start, monkeypatch) -> None:
    """At the first start, around a kernel's chunk, and where the document ends with the branch."""
    model, settings = families["delta_net"](torch.float64), config(chunks=1)
    fast, ids = perturbed(model), tokens(1, 150)
    document = Reading(model, ids, fast)
    monkeypatch.setattr(document, "starts", lambda index, k: torch.tensor([[start]]))
    branches = assert_exact(Loop(model, document, fast, settings), 1e-10)
    assert branches[-1].tolist() == ids[0, start : start + 3].tolist()


def test_it_teaches_where_no_rollout_is_right(families, tokens) -> None:
    """Without one, groups that earn nothing have no gradient; with one, they raise its tokens."""
    model, ids = families["delta_net"](torch.float64), tokens(1, 90)

    def learned(demonstration: bool) -> tuple[float, list[float], list[float]]:
        settings = config(demonstration=demonstration, ntp_coef=0.0, grpo_coef=1.0, optimizer="sgd")
        fast = model.new_fast_weights("fast_weights", 8, 0)
        document = Reading(model, ids, fast, positions=4)
        loop = Loop(model, document, fast, settings)
        starts = torch.tensor([[20, 40, 60, 80]])
        document.starts = lambda index, k: starts  # type: ignore[method-assign]
        before = document.stats(document.trunk(fast).hidden, fast).log_prob
        report, _ = loop.step(1)
        after = document.stats(document.trunk(fast).hidden, fast).log_prob
        at = (starts[0, :, None] + torch.arange(3)).flatten() - 1
        return report.reward_mean, before[0, at].tolist(), after[0, at].tolist()

    reward, before, after = learned(demonstration=False)
    assert reward == 0.0
    assert before == after
    reward, before, after = learned(demonstration=True)
    assert reward == 0.0  # of the rollouts alone
    assert sum(after) > sum(before) + 0.01


def test_it_is_silent_where_every_rollout_is_right(families, tokens, monkeypatch) -> None:
    model, settings = families["delta_net"](torch.float64), config(ntp_coef=0.0, grpo_coef=1.0)
    fast = model.new_fast_weights("fast_weights", 8, 0)
    document = Reading(model, tokens(1, 90).fill_(7), fast, positions=4)
    right = torch.full((1, model.config.vocab_size), float("-inf"), dtype=torch.float64)
    right[0, 7] = 0.0
    monkeypatch.setattr(
        type(model), "head_logits", lambda self, hidden, fast: right.expand(len(hidden), -1)
    )
    loss = Loop(model, document, fast, settings).loss()
    assert loss.rewards.tolist() == [[1.0, 1.0]] * 4
    assert float(loss.grpo.detach()) == 0.0
    loss.total.backward()
    assert all(p.grad is None or not p.grad.any() for p in fast.parameters())


def test_only_rollouts_are_counted_and_rewarded(families, tokens) -> None:
    model, settings = families["delta_net"](torch.float64), config(kl_coef=0.1)
    fast = model.new_fast_weights("fast_weights", 8, 0)
    report, _ = Loop(model, Reading(model, tokens(1, 90), fast, positions=4), fast, settings).step(
        1
    )
    assert report.rollout_tokens == 4 * 2 * 3
    assert report.reward_mean < 0.5  # a demonstration earns 1
    assert report.kl == pytest.approx(0.0, abs=1e-9)


def test_demonstrations_stand_after_their_rollouts() -> None:
    rollouts = torch.tensor([[1, 1], [2, 2], [3, 3], [4, 4]])
    joined = beside(rollouts, torch.tensor([[8, 8], [9, 9]]))
    assert joined[:, 0].tolist() == [1, 2, 8, 3, 4, 9]
