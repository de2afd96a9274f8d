"""Kept adaptations whose state grows with the document keep its tokens and read it again."""

import pytest
import torch

from refine_server.ttt.batching import run
from refine_server.ttt.document_adaptation import DocumentAdaptation, ReadEnd
from refine_server.ttt.interface.config import AdaptConfig
from refine_server.ttt.interface.errors import DamagedError, IsolationError
from refine_server.ttt.kept import dump, restore
from refine_server.ttt.models import CausalLM
from refine_server.ttt.programs.reread import grows_with_document, read_end, without_state
from refine_server.ttt.query_side.document_cache import DocumentCache
from refine_server.ttt.refine.inputs.rows import Rows
from refine_server.ttt.refine.loop import adapt
from support.small_models import Families, Tokens

CONFIG = AdaptConfig.model_validate(
    {"optimizer": {"steps": 2}, "rollouts": {"positions": 2, "tokens": 4}, "guard": "none"}
)


@pytest.fixture(scope="module")
def overlay(families: Families) -> CausalLM:
    return families["overlay"](torch.float32)


@pytest.fixture
def kept(overlay: CausalLM, tokens: Tokens) -> DocumentAdaptation:
    ids = tokens(1, 300)
    fast = overlay.new_fast_weights("low_rank", 4, 0)
    adapted = run(adapt(Rows(overlay, ids, fast, positions=2), fast, CONFIG))
    return without_state(adapted, ids, "a key")


def cache(room: int = 10**9, dtype: torch.dtype | None = None) -> DocumentCache:
    return DocumentCache(lambda: room, 60.0, dtype=dtype)


def end_of(model: CausalLM, kept: DocumentAdaptation, documents: DocumentCache) -> ReadEnd:
    return run(read_end(model, kept, documents))


def test_attention_to_all_tokens_grows_and_a_memory_does_not(families: Families) -> None:
    assert grows_with_document(families["overlay"](torch.float32))
    assert not grows_with_document(families["delta_net"](torch.float32))


def test_it_is_small_and_its_state_is_kept_once(
    overlay: CausalLM, kept: DocumentAdaptation
) -> None:
    documents = cache()
    end = end_of(overlay, kept, documents)
    assert end_of(overlay, kept, documents) is end
    assert documents.nbytes == end.nbytes
    assert kept.nbytes == kept.fast_weights.nbytes + kept.input_ids.nbytes
    documents.forget(kept.owner, kept.document_key)
    assert documents.nbytes == 0


def test_a_state_that_was_dropped_is_read_again_bit_for_bit(
    overlay: CausalLM, kept: DocumentAdaptation
) -> None:
    first, again = (end_of(overlay, kept, cache()) for _ in range(2))
    assert torch.equal(first.hidden, again.hidden)
    whole = overlay(kept.input_ids, None, kept.fast_weights)
    assert torch.allclose(first.hidden, whole.hidden[:, -1], atol=1e-4)
    assert int(first.state.position) == kept.read_tokens == 300


def test_it_survives_being_written(overlay: CausalLM, kept: DocumentAdaptation) -> None:
    data, description = dump(kept)
    restored = restore(data, description, torch.device("cpu"))
    assert isinstance(restored, DocumentAdaptation)
    assert torch.equal(restored.input_ids, kept.input_ids)
    first, again = (end_of(overlay, own, cache()) for own in (kept, restored))
    assert torch.equal(first.hidden, again.hidden)
    assert len(data) < kept.nbytes + 10_000
    with pytest.raises(DamagedError):
        restore(data, {**description, "format": 9}, torch.device("cpu"))


def test_another_owner_is_refused(kept: DocumentAdaptation) -> None:
    with pytest.raises(IsolationError):
        kept.require_owner("bob")


def test_states_in_bfloat16_take_half_and_every_request_sees_the_same(
    overlay: CausalLM, kept: DocumentAdaptation
) -> None:
    full, half = cache(), cache(dtype=torch.bfloat16)
    exact = end_of(overlay, kept, full)
    first, again = end_of(overlay, kept, half), end_of(overlay, kept, half)
    assert half.nbytes == full.nbytes / 2
    assert first.hidden.dtype == torch.float32
    assert torch.equal(first.hidden, again.hidden)
    assert torch.allclose(first.hidden, exact.hidden, rtol=1e-2, atol=1e-2)


def test_without_room_nothing_is_kept(overlay: CausalLM, kept: DocumentAdaptation) -> None:
    documents = cache(room=100)
    assert end_of(overlay, kept, documents).state.nbytes > 100
    assert documents.nbytes == 0


def test_what_there_is_no_room_for_any_more_is_dropped(
    overlay: CausalLM, kept: DocumentAdaptation
) -> None:
    room = 10**9
    documents = DocumentCache(lambda: room, 60.0)
    end_of(overlay, kept, documents)
    documents.shrink()
    assert documents.nbytes > 0
    room = 0
    documents.shrink()
    assert documents.nbytes == 0
