"""Steps of several requests at once: what each gets does not depend on the company."""

import threading

import pytest
import torch

from refine_server.ttt.batching import Call, run_batch
from refine_server.ttt.decoding.decode import DecodeStep
from refine_server.ttt.fast_weights import BASE, FastWeights
from refine_server.ttt.interface.config import AdaptConfig
from refine_server.ttt.refine.loop import AdaptStep, Loop
from refine_server.ttt.refine.rows import Reading

TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5}
DTYPES = pytest.mark.parametrize("dtype", TOLERANCE, ids=["fp64", "fp32"])
BATCHED = ["delta_net", "gated_delta_net", "overlay", "window", "gemma3", "qwen3_next", "toy"]
FAMILIES = pytest.mark.parametrize("family", BATCHED)


def config(**changes) -> AdaptConfig:
    defaults = {"chunks": 4, "rollouts": 2, "steps": 3, "guard": "none", "rank": 4}
    return AdaptConfig(**(defaults | changes))


def decode_steps(model, tokens, perturbed) -> list[DecodeStep]:
    """After 70, 9, 64 and 33 tokens, with deltas of rank 8 and 4, on all projections, and none."""
    thin = model.new_fast_weights("fast_weights", 4, 3)
    thin = FastWeights({n: t + 0.05 for n, t in thin.tensors.items()})
    own = [perturbed(model), thin, perturbed(model, "low_rank", 2), BASE]
    steps = []
    for seed, (length, fast) in enumerate(zip((70, 9, 64, 33), own, strict=True)):
        with torch.no_grad():
            state = model(tokens(1, length, seed=seed), None, fast).state
        steps.append(DecodeStep(model, 5 + seed, state, fast))
    return steps


@DTYPES
@FAMILIES
def test_decoded_tokens_are_scored_as_alone(families, family, dtype, tokens, perturbed) -> None:
    model = families[family](dtype)
    steps = decode_steps(model, tokens, perturbed)
    assert all(step.can_batch_with(steps[0]) for step in steps)
    for _ in range(3):  # what a batch leaves behind goes on in the next one
        together = run_batch(steps)
        for step, after in zip(steps, together, strict=True):
            [alone] = run_batch([step])
            assert float((after.logits - alone.logits).abs().max()) <= TOLERANCE[dtype]
            assert after.state.position.tolist() == alone.state.position.tolist()
        steps = [
            DecodeStep(model, 7, after.state, step.fast)
            for step, after in zip(steps, together, strict=True)
        ][::-1]


def loops_of(model, tokens, **changes) -> list[Loop]:
    """Documents of 101, 90 and 83 tokens, each with its own seed, rate, clip, reward and owner."""
    own = [
        {"seed": 1, "learning_rate": 0.02, "reward": "hybrid"},
        {"seed": 2, "max_grad_norm": 0.01, "reward": "exact", "grpo_coef": 1.0},
        {"seed": 3, "optimizer": "sgd", "learning_rate": 0.5, "reward": "cosine", "kl_coef": 0.1},
    ]
    loops = []
    for r, (length, fields) in enumerate(zip((101, 90, 83), own, strict=True)):
        settings = config(**{**fields, **changes})
        fresh = model.new_fast_weights(settings.targets, settings.rank, settings.seed)
        generator = torch.Generator().manual_seed(r)
        # Away from zero, where AdamW turns rounding into whole steps.
        noise = {
            n: 0.05 * torch.randn(t.shape, generator=generator) for n, t in fresh.tensors.items()
        }
        fast = FastWeights({n: t + noise[n].to(t) for n, t in fresh.tensors.items()}, f"owner {r}")
        rows = Reading(model, tokens(1, length, seed=r), fast, first=3 + r, positions=4)
        loops.append(Loop(model, rows, fast, settings))
    return loops


def steps_of(loops: list[Loop], number: int = 1) -> list[AdaptStep]:
    return [AdaptStep(loop, number) for loop in loops]


def difference(a: Loop, b: Loop) -> float:
    return max(float((a.fast[n] - b.fast[n]).detach().abs().max()) for n in a.fast)


SHAPES = [
    {},
    {"targets": "fast_weights"},
    {"objective": "ntp"},
    {"prefix": "local", "chunks": 2},
    {"demonstration": True},
]


@pytest.mark.parametrize(
    "shape", SHAPES, ids=["low_rank", "fast_weights", "ntp", "local", "demonstration"]
)
@pytest.mark.parametrize("family", ["delta_net", "overlay", "qwen3_next"])
def test_steps_are_made_as_alone(families, family, shape, tokens) -> None:
    model = families[family](torch.float64)
    alone, together = loops_of(model, tokens, **shape), loops_of(model, tokens, **shape)
    for number in (1, 2):
        steps = steps_of(together, number)
        assert all(step.can_batch_with(steps[0]) for step in steps)
        in_batch = run_batch(steps)
        for loop, other, (report, reason) in zip(alone, together, in_batch, strict=True):
            expected, _ = loop.step(number)
            assert reason is None
            assert report.loss == pytest.approx(expected.loss, abs=1e-10)
            assert report.reward_mean == pytest.approx(expected.reward_mean, abs=1e-10)
            assert report.grad_norm == pytest.approx(expected.grad_norm, rel=1e-9)
            assert difference(loop, other) <= 1e-10


def test_single_precision_steps_are_made_as_alone(families, tokens) -> None:
    model = families["overlay"](torch.float32)
    alone, together = loops_of(model, tokens), loops_of(model, tokens)
    run_batch(steps_of(together))
    for loop, other in zip(alone, together, strict=True):
        loop.step(1)
        assert difference(loop, other) <= 1e-5


def test_a_member_without_finite_values_is_rejected_alone(families, tokens) -> None:
    model = families["delta_net"](torch.float64)
    alone, together = loops_of(model, tokens), loops_of(model, tokens)
    broken = together[1].fast
    for tensor in broken.parameters():
        tensor.data.fill_(float("nan"))
    reasons = [reason for _, reason in run_batch(steps_of(together))]
    assert reasons == [None, "non_finite_loss", None]
    for r in (0, 2):
        alone[r].step(1)
        assert difference(alone[r], together[r]) <= 1e-10


def test_a_member_that_fails_takes_none_with_it(families, tokens, monkeypatch) -> None:
    """The batch is taken apart, and the others draw the same numbers again."""
    model = families["delta_net"](torch.float64)
    alone, together = loops_of(model, tokens), loops_of(model, tokens)

    def fail(*_):
        raise MemoryError("too large")

    monkeypatch.setattr(together[2].rollout_reading, "starts", fail)
    first, second, failed = run_batch(steps_of(together))
    assert isinstance(failed, MemoryError)
    for loop, other, (report, _) in zip(alone[:2], together[:2], (first, second), strict=True):
        assert loop.step(1)[0].loss == pytest.approx(report.loss, abs=1e-10)
        assert difference(loop, other) <= 1e-10


@pytest.mark.parametrize("threads", [2, 3])
def test_parts_of_a_batch_run_in_threads_of_their_own(
    families, tokens, monkeypatch, threads
) -> None:
    """Results keep their order, and in a thread for itself each is bit for bit what it is alone."""
    model = families["delta_net"](torch.float32)
    monkeypatch.setattr(model, "threads", threads)
    alone, together = loops_of(model, tokens), loops_of(model, tokens)
    ran_in = []
    monkeypatch.setattr(together[1], "update", lambda *_: ran_in.append(threading.get_ident()))
    monkeypatch.setattr(together[2].rollout_reading, "starts", lambda *_: 1 / 0)
    first, _, failed = run_batch(steps_of(together))
    assert isinstance(failed, ZeroDivisionError)
    assert ran_in != [threading.get_ident()]
    expected, _ = alone[0].step(1)
    assert first[0].loss == expected.loss
    assert difference(alone[0], together[0]) == 0


def test_lone_calls_run_beside_each_other() -> None:
    """Each waits for the other: one after the other they would wait for ever."""
    barrier = threading.Barrier(2, timeout=60)
    lone = [Call(barrier.wait, threads=2) for _ in range(2)]
    assert lone[1].can_batch_with(lone[0])
    assert sorted(run_batch(lone)) == [0, 1]


def test_an_update_that_fails_takes_none_with_it(families, tokens, monkeypatch) -> None:
    model = families["delta_net"](torch.float64)
    alone, together = loops_of(model, tokens), loops_of(model, tokens)

    def fail(*_):
        raise RuntimeError("broken")

    monkeypatch.setattr(together[0].optimizer, "step", fail)
    failed, *_ = run_batch(steps_of(together))
    assert isinstance(failed, RuntimeError)
    for loop, other in zip(alone[1:], together[1:], strict=True):
        loop.step(1)
        assert difference(loop, other) <= 1e-10


def test_what_cannot_be_batched_says_so(families, tokens, perturbed) -> None:
    lact, model = families["lact"](torch.float32), families["delta_net"](torch.float32)
    state = lact(tokens(1, 20)).state
    step = DecodeStep(lact, 1, state, BASE)
    assert step.max_batch_size == 1
    assert not step.can_batch_with(step)
    whole = DecodeStep(model, 1, model(tokens(1, 20)).state, perturbed(model, "all"))
    assert whole.max_batch_size == 1
    long, short = (loops_of(model, tokens)[0] for _ in range(2))
    short.ntp_reading = Reading(model, tokens(1, 60), short.fast, positions=4)
    assert not AdaptStep(short, 1).can_batch_with(AdaptStep(long, 1))
    other = loops_of(model, tokens, chunks=2)[0]
    assert not AdaptStep(other, 1).can_batch_with(AdaptStep(long, 1))
    assert not Call(int).can_batch_with(Call(int))
