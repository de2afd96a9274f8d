"""Decode steps of several requests in one batch: each result is independent of the others."""

import pytest
import torch

from refine_server.ttt.batching import run_batch
from refine_server.ttt.decoding.decode import DecodeStep
from refine_server.ttt.fast_weights import BASE, FastWeights
from refine_server.ttt.models import CausalLM
from support.small_models import Families, Perturbed, Tokens

TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5}
BATCHED = ["delta_net", "gated_delta_net", "overlay", "window", "gemma3", "qwen3_next"]


def decode_steps(model: CausalLM, tokens: Tokens, perturbed: Perturbed) -> list[DecodeStep]:
    """With low-rank updates of rank 8 and 4, of all projections, of queries alone, and none."""
    thin = model.new_fast_weights("fast_weights", 4, 3)
    thin = FastWeights({n: t + 0.05 for n, t in thin.tensors.items()})
    own = [perturbed(model), thin, perturbed(model, "low_rank", 2)]
    own += [perturbed(model, "queries", 3), BASE]
    steps = []
    for seed, (length, fast) in enumerate(zip((70, 9, 64, 21, 33), own, strict=True)):
        with torch.no_grad():
            state = model(tokens(1, length, seed=seed), None, fast).state
        steps.append(DecodeStep(model, 5 + seed, state, fast))
    return steps


@pytest.mark.parametrize("dtype", TOLERANCE, ids=["fp64", "fp32"])
@pytest.mark.parametrize("family", BATCHED)
def test_logits_in_a_batch_are_those_computed_alone(
    families: Families, family: str, dtype: torch.dtype, tokens: Tokens, perturbed: Perturbed
) -> None:
    model = families[family](dtype)
    steps = decode_steps(model, tokens, perturbed)
    assert all(step.can_batch_with(steps[0]) for step in steps)
    for _ in range(3):  # the states that a batch leaves behind go into the next one
        together = run_batch(steps)
        for step, after in zip(steps, together, strict=True):
            [alone] = run_batch([step])
            assert float((after.logits - alone.logits).abs().max()) <= TOLERANCE[dtype]
            assert after.state.position.tolist() == alone.state.position.tolist()
        steps = [
            DecodeStep(model, 7, after.state, step.fast)
            for step, after in zip(steps, together, strict=True)
        ][::-1]


def test_states_of_one_length_only_and_full_copies_are_not_batched(
    families: Families, tokens: Tokens, perturbed: Perturbed
) -> None:
    lact, model = families["lact"](torch.float32), families["delta_net"](torch.float32)
    step = DecodeStep(lact, 1, lact(tokens(1, 20)).state, BASE)
    assert step.max_batch_size == 1
    assert not step.can_batch_with(step)
    whole = DecodeStep(model, 1, model(tokens(1, 20)).state, perturbed(model, "all"))
    assert whole.max_batch_size == 1
