"""The stateful forward: parity with references, resuming anywhere, fast weights by request."""

from typing import Any

import pytest
import torch

from refine_server.ttt.fast_weights import FastWeights
from refine_server.ttt.models import CausalLM, ModelError, build
from refine_server.ttt.models.state import KVState
from support.small_models import Golden, LoadGolden, MakeModel, Perturbed, Tokens

TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4}
DTYPES = pytest.mark.parametrize("dtype", TOLERANCE, ids=["fp64", "fp32"])


@pytest.mark.parametrize(
    ("name", "gradients"),
    [
        ("delta_net", 20),
        ("delta_net_gate", 20),
        ("delta_net_no_conv", 10),
        ("gated_delta_net", 0),
        ("gated_delta_net_groups", 26),
        ("gated_delta_net_plain", 18),
        ("lact_760m_style", 20),
        ("lact_prenorm", 30),
        ("lact_per_channel", 28),
    ],
)
def test_equals_the_reference(load_golden: LoadGolden, name: str, gradients: int) -> None:
    errors = load_golden(name).errors()
    assert len(errors) == 3 + gradients
    assert max(errors.values()) <= 1e-4


@DTYPES
def test_pieces_equal_one_forward(
    make_model: MakeModel, dtype: torch.dtype, tokens: Tokens
) -> None:
    model, ids = make_model(dtype), tokens(2, 141)
    whole = model(ids).logits
    pieces, state = [], None
    for piece in ids.split([64, 1, 37, 2, 37], dim=1):
        output = model(piece, state)
        pieces.append(output.logits)
        state = output.state
    assert state.position.tolist() == [141, 141]
    assert (torch.cat(pieces, dim=1) - whole).abs().max() <= TOLERANCE[dtype]


@DTYPES
def test_token_by_token_equals_one_forward(
    make_model: MakeModel, dtype: torch.dtype, tokens: Tokens
) -> None:
    model, ids = make_model(dtype), tokens(1, 70)
    whole = model(ids).logits
    state, steps = None, []
    for t in range(70):
        output = model(ids[:, t : t + 1], state)
        state = output.state
        steps.append(output.logits)
    assert (torch.cat(steps, dim=1) - whole).abs().max() <= TOLERANCE[dtype]


def test_a_state_can_be_continued_twice(model: CausalLM, tokens: Tokens) -> None:
    first, second = tokens(1, 9, seed=2), tokens(1, 9, seed=3)
    state = model(tokens(1, 80)).state
    before = model(first, state).logits
    model(second, state)
    assert torch.equal(model(first, state).logits, before)


@pytest.mark.parametrize("targets", ["fast_weights", "low_rank", "queries", "all"])
def test_trunk_branches_equal_rereading(
    model: CausalLM, tokens: Tokens, perturbed: Perturbed, targets: str
) -> None:
    ids, rollouts = tokens(1, 150), tokens(6, 5, seed=4)
    fast = perturbed(model, targets)
    trunk = model.trunk(model.freeze(ids, fast), fast)
    torch.testing.assert_close(trunk.hidden, model(ids, None, fast).hidden)
    positions = torch.tensor([[1, 64, 149]])
    branches = model(rollouts, trunk.state_at(positions).repeat(2), fast).hidden
    for row in range(6):
        start = int(positions[0, row // 2])
        prefix = torch.cat([ids[:, :start], rollouts[row : row + 1]], dim=1)
        reread = model(prefix, None, fast).hidden[:, start:]
        torch.testing.assert_close(branches[row : row + 1], reread)


@pytest.mark.parametrize("targets", ["fast_weights", "low_rank", "queries", "all"])
def test_requests_in_a_batch_do_not_mix(
    model: CausalLM, tokens: Tokens, perturbed: Perturbed, targets: str
) -> None:
    ids = tokens(6, 33)
    requests = [perturbed(model, targets, seed) for seed in range(3)]
    together = model(ids, None, FastWeights.stack(requests)).logits
    for r, fast in enumerate(requests):
        alone = model(ids[2 * r : 2 * r + 2], None, fast).logits
        torch.testing.assert_close(together[2 * r : 2 * r + 2], alone, atol=1e-9, rtol=1e-9)


def test_half_precision_can_be_resumed(
    make_model: MakeModel, tokens: Tokens, perturbed: Perturbed
) -> None:
    """In bf16, with fast weights in fp32, a state is the whole sequence up to rounding."""
    model, ids = make_model(torch.bfloat16), tokens(1, 90)
    fast = perturbed(model)
    whole = model(ids, None, fast)
    assert {fast[name].dtype for name in fast} == {torch.float32}
    assert whole.logits.dtype == torch.bfloat16
    exact = make_model(torch.float32)(ids, None, fast).logits
    first = model(ids[:, :37], None, fast)
    logits = torch.cat([first.logits, model(ids[:, 37:], first.state, fast).logits], dim=1)
    rounding = (whole.logits - exact).abs().mean()
    assert rounding <= 0.05 * exact.abs().max()
    assert (logits - exact).abs().mean() <= 1.5 * rounding


@pytest.mark.parametrize("targets", ["fast_weights", "low_rank", "queries", "all"])
def test_fresh_fast_weights_change_nothing(model: CausalLM, tokens: Tokens, targets: str) -> None:
    ids = tokens(1, 40)
    fast = model.new_fast_weights(targets, 4, 0)
    torch.testing.assert_close(model(ids, None, fast).logits, model(ids).logits)


def test_hidden_states_come_without_logits(model: CausalLM, tokens: Tokens) -> None:
    output = model(tokens(1, 8))
    assert output.logits.shape == (1, 8, 96)
    model.lm_head.weight.data.fill_(float("nan"))
    assert output.hidden.isfinite().all()
    assert output.logits.isnan().all()  # computed now, from the head as it is now


def test_only_full_attention_has_states_that_grow(make_model: MakeModel, tokens: Tokens) -> None:
    model = make_model(torch.float32)
    sizes = {model(tokens(1, length)).state.nbytes for length in (96, 160, 992)}
    assert len(sizes) == (3 if KVState in model.state_classes else 1)


def test_base_parameters_never_ask_for_gradients(model: CausalLM) -> None:
    assert not any(p.requires_grad for p in model.parameters())


def test_mismatched_weights_are_refused(golden: Golden) -> None:
    weights = golden.under("weights.")
    weights.pop("lm_head.weight")
    with pytest.raises(ModelError, match=r"missing.*lm_head"):
        build(golden.config, weights)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": None}, "model_type"),
        ({"model_type": "no_such_model"}, "no_such_model"),
        ({"qk_norm": "sum"}, "qk_norm"),
        ({"attn": {"layers": [0]}}, "attn"),
    ],
)
def test_unsupported_configurations_are_refused_by_name(
    golden: Golden, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(ModelError, match=message):
        build(golden.config | change, golden.under("weights."))
