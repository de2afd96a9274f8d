"""Documents that were read are kept for their owner, within a budget and for a time."""

import pytest
import torch
from torch import Tensor

from refine_server.ttt.models import CausalLM
from refine_server.ttt.query_side.document_cache import DocumentCache, document_key
from refine_server.ttt.query_side.frozen_document import FrozenDocument
from support.small_models import Families, Tokens


@pytest.fixture(scope="module")
def small(families: Families) -> CausalLM:
    return families["overlay"](torch.float32)


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def read(model: CausalLM, ids: Tensor) -> FrozenDocument:
    return FrozenDocument.read(model, ids)


def test_a_document_is_found_by_its_owner_and_its_tokens_alone(
    small: CausalLM, tokens: Tokens
) -> None:
    cache, document = DocumentCache(lambda: 10**9, 60.0), read(small, tokens(1, 40))
    cache.keep_frozen("ada", document)
    assert cache.frozen("ada", tokens(1, 40)) is document
    assert cache.frozen("bob", tokens(1, 40)) is None
    assert cache.frozen("ada", tokens(1, 41)) is None
    assert cache.frozen("ada", tokens(1, 40, seed=2)) is None


def test_the_least_recently_used_is_dropped_when_the_budget_is_full(
    small: CausalLM, tokens: Tokens
) -> None:
    documents = [read(small, tokens(1, 40, seed=seed)) for seed in range(3)]
    size = documents[0].nbytes
    cache = DocumentCache(lambda: 2 * size, 60.0)
    for document in documents[:2]:
        cache.keep_frozen("ada", document)
    assert cache.frozen("ada", documents[0].input_ids) is documents[0]
    cache.keep_frozen("ada", documents[2])
    assert cache.frozen("ada", documents[1].input_ids) is None
    assert cache.frozen("ada", documents[0].input_ids) is documents[0]
    assert cache.nbytes == 2 * size


def test_what_is_larger_than_the_budget_is_not_kept(small: CausalLM, tokens: Tokens) -> None:
    cache, document = DocumentCache(lambda: 100, 60.0), read(small, tokens(1, 40))
    cache.keep_frozen("ada", document)
    assert cache.frozen("ada", document.input_ids) is None
    assert cache.nbytes == 0


def test_a_document_expires_after_its_last_use(small: CausalLM, tokens: Tokens) -> None:
    clock, document = Clock(), read(small, tokens(1, 40))
    cache = DocumentCache(lambda: 10**9, 60.0, clock)
    cache.keep_frozen("ada", document)
    clock.now = 50.0
    assert cache.frozen("ada", document.input_ids) is document
    clock.now = 109.0
    assert cache.frozen("ada", document.input_ids) is document
    clock.now = 170.0
    assert cache.frozen("ada", document.input_ids) is None
    assert cache.nbytes == 0


def test_what_nobody_asks_for_expires_as_well(small: CausalLM, tokens: Tokens) -> None:
    clock = Clock()
    cache = DocumentCache(lambda: 10**9, 60.0, clock)
    cache.keep_frozen("ada", read(small, tokens(1, 40)))
    clock.now = 61.0
    cache.drop_expired()
    assert cache.nbytes == 0


def test_a_document_is_forgotten_for_one_owner(small: CausalLM, tokens: Tokens) -> None:
    cache, document = DocumentCache(lambda: 10**9, 60.0), read(small, tokens(1, 40))
    for owner in ("ada", "bob"):
        cache.keep_frozen(owner, document)
    key = document_key(document.input_ids)
    for _ in range(2):
        cache.forget("ada", key)
        assert cache.frozen("ada", document.input_ids) is None
        assert cache.frozen("bob", document.input_ids) is document
        assert cache.nbytes == document.nbytes


def test_the_same_document_counts_once(small: CausalLM, tokens: Tokens) -> None:
    cache, document = DocumentCache(lambda: 10**9, 60.0), read(small, tokens(1, 40))
    cache.keep_frozen("ada", document)
    cache.keep_frozen("ada", read(small, tokens(1, 40)))
    assert cache.nbytes == document.nbytes
