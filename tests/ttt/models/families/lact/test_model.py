"""LaCT: each chunk is written once, after it is complete, whatever pieces a sequence comes in."""

from dataclasses import fields
from typing import Any

import pytest
import torch
from torch import Tensor

from refine_server.ttt.fast_weights import FastWeights
from refine_server.ttt.models import CausalLM, ModelError, State, build
from support.small_models import LoadGolden, Perturbed, Tokens

CHUNK = 16  # of the tiny model; its window is as long


@pytest.fixture
def lact(load_golden: LoadGolden) -> CausalLM:
    return load_golden("lact_760m_style").model(torch.float64)


def in_pieces(
    model: CausalLM,
    ids: Tensor,
    sizes: list[int],
    fast: FastWeights | None = None,
    state: State | None = None,
) -> tuple[Tensor, State]:
    logits = []
    for piece in ids.split(sizes, dim=1):
        output = model(piece, state, fast)
        logits.append(output.logits)
        state = output.state
    return torch.cat(logits, dim=1), state


@pytest.mark.parametrize("length", [1, 15, 16, 17, 31, 32, 33, 48, 49])
def test_pieces_of_any_size_give_the_same(
    lact: CausalLM, tokens: Tokens, perturbed: Perturbed, length: int
) -> None:
    ids, fast = tokens(2, length), perturbed(lact)
    whole = lact(ids, None, fast)
    for cut in {1, 15, 16, 17, length - 1} & set(range(1, length)):
        logits, state = in_pieces(lact, ids, [cut, length - cut], fast)
        assert (logits - whole.logits).abs().max() <= 1e-9
        ahead = tokens(2, 20, seed=5)
        after = lact(ahead, state, fast).logits - lact(ahead, whole.state, fast).logits
        assert after.abs().max() <= 1e-9


@pytest.mark.parametrize("name", ["lact_muon", "lact_prenorm", "lact_per_channel"])
def test_variants_can_be_resumed_at_any_token(
    load_golden: LoadGolden, tokens: Tokens, name: str
) -> None:
    model, ids = load_golden(name).model(torch.float64), tokens(2, 70)
    whole = model(ids).logits
    for sizes in ([33, 1, 16, 20], [1] * 70):
        assert (in_pieces(model, ids, sizes)[0] - whole).abs().max() <= 1e-9


def test_rows_at_different_positions_in_a_chunk_continue_together(
    lact: CausalLM, tokens: Tokens, perturbed: Perturbed
) -> None:
    """Some branches of a document cross a chunk boundary and some do not.

    The last one continues for three chunks, so rows cross up to four boundaries at different
    tokens.
    """
    ids, fast = tokens(1, 80), perturbed(lact)
    trunk = lact.trunk(lact.freeze(ids, fast), fast)
    positions = torch.tensor([[1, 15, 16, 17, 30, 32, 79]])
    ahead = tokens(14, 50, seed=3)
    state = trunk.state_at(positions).repeat(2)
    logits, _ = in_pieces(lact, ahead, [3, 1, 20, 26], fast, state)
    for row in range(14):
        start = int(positions[0, row // 2])
        alone = torch.cat([ids[:, :start], ahead[row : row + 1]], dim=1)
        expected = lact(alone, None, fast).logits[:, start:]
        assert (logits[row : row + 1] - expected).abs().max() <= 1e-9


def test_the_last_chunk_never_writes(lact: CausalLM, tokens: Tokens) -> None:
    """A full chunk changes the memory when the next token comes, as in the authors' code."""
    full = lact(tokens(1, CHUNK)).state.layers[0]
    assert full.pending.lengths == [CHUNK]
    after = lact(tokens(1, 1), lact(tokens(1, CHUNK)).state).state.layers[0]
    assert after.pending.lengths == [1]
    assert not torch.equal(after.memory.weights[0], full.memory.weights[0])


def test_rows_keep_their_norms(lact: CausalLM, tokens: Tokens) -> None:
    memory = lact(tokens(1, 100)).state.layers[0].memory
    for weights, norms in zip(memory.weights, memory.norms, strict=True):
        torch.testing.assert_close(weights.norm(dim=-1, keepdim=True), norms, rtol=1e-3, atol=0)


def test_branches_share_the_document(lact: CausalLM, tokens: Tokens) -> None:
    trunk = lact.trunk(lact.freeze(tokens(1, 300), FastWeights()), FastWeights())
    one = trunk.state_at(torch.tensor([[250]]))
    assert one.repeat(8).nbytes == one.nbytes
    storages = {x.untyped_storage().data_ptr() for x in one.layers[0].pending.prefix}
    assert storages <= {x.untyped_storage().data_ptr() for x in trunk.traces[0].pending.tail}


def test_a_state_keeps_no_more_than_it_needs(lact: CausalLM, tokens: Tokens) -> None:
    """A state holds no view of the whole document's keys and values."""
    state = lact(tokens(1, 500)).state
    for _ in range(2 * CHUNK):
        state = lact(tokens(1, 1), state).state
    layer = state.layers[0]
    window = [getattr(layer.window, field.name) for field in fields(layer.window)]
    held = [*window, *layer.pending.prefix, *layer.pending.tail]
    for x in held:
        assert x.untyped_storage().nbytes() <= 2 * CHUNK * 4 * 64 * 8


def test_muon_equals_the_reference(load_golden: LoadGolden) -> None:
    """Outputs are equal although Newton–Schulz in bf16 amplifies rounding errors a hundredfold.

    On a CPU whose fp32 products round as those of the reference's machine, that is: the tokens
    before the first update tell. Not so its gradients, which are sums of bf16 terms: the authors'
    own are 0.015 off.
    """
    golden = load_golden("lact_muon")
    errors = golden.errors()
    gradients = [error for name, error in errors.items() if name.startswith("grad.")]
    assert len(gradients) == 20
    assert max(gradients) <= 0.05
    before, expected = golden.tensors["input_ids"][:, :CHUNK], golden.tensors["logits"][:, :CHUNK]
    logits = golden.model()(before).logits
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=0)
    if not torch.equal(logits, expected):
        assert errors["logits"] <= 0.5
        pytest.skip("fp32 products round otherwise here; amplified, that is 0.1 to 0.3 in a logit")
    assert errors["logits"] <= 1e-4
    assert errors["last_hidden_state"] <= 1e-4
    assert errors["loss"] <= 1e-4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lr_parameterization": "linear"}, "lr_parameterization"),
        ({"ttt_loss_type": "l2"}, "ttt_loss_type"),
        ({"lr_dim": 3}, "lr_dim"),
        ({"hidden_act": "gelu"}, "hidden_act"),
    ],
)
def test_unsupported_settings_are_refused(
    load_golden: LoadGolden, change: dict[str, Any], message: str
) -> None:
    golden = load_golden("lact_760m_style")
    with pytest.raises(ModelError, match=message):
        build(golden.config | change, golden.under("weights."))
