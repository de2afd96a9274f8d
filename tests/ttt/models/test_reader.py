"""A text that is read piece by piece: every family ends where one forward over all of it does."""

import pytest
import torch

from refine_server.ttt.models import CausalLM, reader
from refine_server.ttt.models.families.fla.delta_net import DeltaNet, DeltaNetConfig
from refine_server.ttt.models.reader import Reader
from support.small_models import MakeModel, Tokens


@pytest.fixture(autouse=True)
def _short_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "BOUNDARY_TOKENS", 16)


@pytest.mark.parametrize("T", [1, 15, 16, 17, 67])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-4)])
def test_pieces_are_one_reading(
    make_model: MakeModel, tokens: Tokens, T: int, dtype: torch.dtype, tolerance: float
) -> None:
    model = make_model(dtype)
    ids, after = tokens(1, T), tokens(1, 3, seed=2)
    whole = model(ids)
    pieces = Reader(model, ids)
    hidden = []
    while not pieces.is_done:
        hidden.append(pieces.read_piece())
        assert hidden[-1].shape[1] <= 16
    assert pieces.tokens == T
    assert (torch.cat(hidden, dim=1) - whole.hidden).abs().max() <= tolerance
    assert (model(after, pieces.state).hidden - model(after, whole.state).hidden).abs().max() <= (
        tolerance
    )


def test_a_state_that_is_continued_stays_as_it_was(model: CausalLM, tokens: Tokens) -> None:
    state = model(tokens(1, 30)).state
    question, probe = tokens(1, 40, seed=2), tokens(1, 3, seed=3)
    before = model(probe, state).hidden
    pieces = Reader(model, question, state)
    while not pieces.is_done:
        pieces.read_piece()
    assert torch.equal(model(probe, state).hidden, before)
    expected = model(torch.cat([question, probe], dim=1), state).hidden[:, -3:]
    assert (model(probe, pieces.state).hidden - expected).abs().max() <= 1e-10


def test_a_gpu_reads_longer_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of them launches all kernels anew; the meta device stands for one."""
    monkeypatch.setattr(reader, "GPU_BOUNDARY_TOKENS", 64)
    config = DeltaNetConfig(hidden_size=32, num_hidden_layers=1, vocab_size=50, num_heads=2)
    with torch.device("meta"):
        model, ids = DeltaNet(config), torch.zeros(1, 150, dtype=torch.long)
    pieces = Reader(model, ids)
    lengths = []
    while not pieces.is_done:
        lengths.append(pieces.read_piece().shape[1])
    assert lengths == [64, 64, 22]
