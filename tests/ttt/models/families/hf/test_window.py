"""The sliding-window mode of the overlay: exact, with a state of constant size."""

from pathlib import Path

import pytest
import torch

from refine_server.ttt.fast_weights import BASE
from refine_server.ttt.interface.config import (
    AdaptConfig,
    FastWeightConfig,
    OptimizerConfig,
    RolloutConfig,
    SamplingConfig,
)
from refine_server.ttt.interface.requests import AdaptRequest, AskRequest
from refine_server.ttt.models import ModelError, load
from refine_server.ttt.models.families.hf.overlay import Overlay
from refine_server.ttt.models.loading.loader import wrap
from refine_server.ttt.pieces import run_pieces
from refine_server.ttt.programs.start import perform
from refine_server.ttt.refine.inputs.rows import Rows
from support.small_models import MakeTransformers, Perturbed, Tokens
from support.steps import TOLERANCE, gradient_error, prepared

WINDOW = 16
DTYPES = pytest.mark.parametrize("dtype", TOLERANCE, ids=["fp64", "fp32"])


def windowed(
    make_transformers: MakeTransformers, dtype: torch.dtype = torch.float64, window: int = WINDOW
) -> Overlay:
    model = wrap(make_transformers("llama", tie_word_embeddings=True).to(dtype))
    assert isinstance(model, Overlay)
    model.limit_window(window)
    return model


def test_it_is_what_transformers_calls_a_sliding_window(
    make_transformers: MakeTransformers, tokens: Tokens
) -> None:
    """A Llama limited to a window equals a Mistral with that window."""
    llama = make_transformers("llama")
    mistral = make_transformers("mistral", sliding_window=WINDOW, head_dim=16)
    mistral.load_state_dict(llama.state_dict())
    model, ids = wrap(llama), tokens(2, 70)
    assert isinstance(model, Overlay)
    model.limit_window(WINDOW)
    with torch.no_grad():
        theirs = mistral(input_ids=ids, use_cache=False).logits
    torch.testing.assert_close(model(ids).logits, theirs, atol=1e-5, rtol=1e-4)


@DTYPES
@pytest.mark.parametrize("length", [1, 15, 16, 17, 32, 131])
def test_reading_in_pieces_equals_one_forward(
    make_transformers: MakeTransformers, tokens: Tokens, dtype: torch.dtype, length: int
) -> None:
    model, ids = windowed(make_transformers, dtype), tokens(2, length)
    whole = model(ids)
    hidden, state = model.read(ids, BASE)
    close = {"atol": TOLERANCE[dtype], "rtol": TOLERANCE[dtype]}
    torch.testing.assert_close(hidden, whole.hidden[:, -1], **close)
    after = tokens(2, 9, seed=2)
    torch.testing.assert_close(
        model(after, state).hidden, model(after, whole.state).hidden, **close
    )
    both = model(torch.cat([ids, after], dim=1)).hidden[:, length:]
    torch.testing.assert_close(model(after, state).hidden, both, **close)


def test_a_state_does_not_grow_with_the_document(
    make_transformers: MakeTransformers, tokens: Tokens
) -> None:
    model = windowed(make_transformers)
    sizes = {length: model.read(tokens(1, length), BASE)[1].nbytes for length in (64, 200, 1000)}
    assert len(set(sizes.values())) == 1
    trunk = model.trunk(model.freeze(tokens(1, 500), BASE), BASE)
    assert trunk.state.nbytes == sizes[64]


def test_no_piece_is_longer_than_the_window(
    make_transformers: MakeTransformers, tokens: Tokens, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = windowed(make_transformers)
    lengths = []
    forward = model.forward
    monkeypatch.setattr(
        model, "forward", lambda ids, *rest: lengths.append(ids.shape[1]) or forward(ids, *rest)
    )
    run_pieces(Rows(model, tokens(1, 100), BASE).end(BASE))
    assert lengths == [WINDOW] * 6 + [4]


@DTYPES
def test_branches_start_from_exact_states(
    make_transformers: MakeTransformers, tokens: Tokens, dtype: torch.dtype
) -> None:
    model, ids = windowed(make_transformers, dtype), tokens(1, 90)
    at, after = torch.tensor([[3, 16, 17, 64, 89]]), tokens(1, 7, seed=2)
    trunk = model.trunk(model.freeze(ids, BASE), BASE)
    branches = model(after.expand(5, -1), trunk.state_at(at)).hidden
    for branch, start in zip(branches, at[0].tolist(), strict=True):
        alone = model(torch.cat([ids[:, :start], after], dim=1)).hidden[0, start:]
        torch.testing.assert_close(
            branch, alone, atol=TOLERANCE[dtype], rtol=TOLERANCE[dtype], check_stride=False
        )


@DTYPES
@pytest.mark.parametrize("length", [131, 200])
def test_gradient_equals_the_naive_loop(
    make_transformers: MakeTransformers,
    tokens: Tokens,
    perturbed: Perturbed,
    dtype: torch.dtype,
    length: int,
) -> None:
    model = windowed(make_transformers, dtype)
    settings = AdaptConfig(
        rollouts=RolloutConfig(positions=4, per_position=2, reward="hybrid"),
        fast_weights=FastWeightConfig(targets="fast_weights"),
    )
    fast = perturbed(model)
    document = Rows(model, tokens(1, length), fast, positions=4)
    run = prepared(document, settings)
    assert document.held_out
    assert gradient_error(run.inputs) <= TOLERANCE[dtype]


def test_only_tokens_in_the_window_are_seen(
    make_transformers: MakeTransformers, tokens: Tokens
) -> None:
    model, ids = windowed(make_transformers), tokens(1, 200)
    other = ids.clone()
    other[0, 0] = (ids[0, 0] + 1) % 96
    reach = (WINDOW - 1) * model.num_layers
    hidden, changed = model(ids).hidden[0], model(other).hidden[0]
    assert torch.equal(hidden[reach + 1 :], changed[reach + 1 :])
    assert not torch.equal(hidden[reach], changed[reach])


def test_a_directory_is_loaded_with_a_window_and_answers(
    tmp_path: Path, make_transformers: MakeTransformers
) -> None:

    tokenizer = load("tiny").tokenizer
    llama = make_transformers("llama", vocab_size=len(tokenizer))
    llama.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    full, model = load(tmp_path), load(tmp_path, window=32)
    assert model.fingerprint() not in (full.fingerprint(), load(tmp_path, window=33).fingerprint())
    document = "The harbour code is amber. " * 40
    config = AdaptConfig(rollouts=RolloutConfig(positions=2), optimizer=OptimizerConfig(steps=2))
    *_, last = perform(model, AdaptRequest(document, config))
    adapted = last.document
    assert adapted.document_tokens > 200
    *_, half = perform(model, AdaptRequest(document[: len(document) // 2], config))
    assert adapted.state.nbytes == half.document.state.nbytes
    *_, answered = perform(model, AskRequest(adapted, "What?", SamplingConfig(max_tokens=3)))
    assert answered.usage.completion_tokens > 0


def test_other_families_and_other_numbers_are_refused(make_transformers: MakeTransformers) -> None:
    with pytest.raises(ModelError, match="window: the family delta_net"):
        load("tiny", window=64)
    with pytest.raises(ModelError, match="window: 0"):
        windowed(make_transformers, window=0)
