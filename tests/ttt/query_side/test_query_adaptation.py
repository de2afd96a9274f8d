"""What is kept of a query-side adaptation: its size, and its way to the store and back."""

import json
from typing import Any

import pytest
import torch

from refine_server.ttt.fast_weights import BASE, FastWeights
from refine_server.ttt.interface.errors import DamagedError, IsolationError
from refine_server.ttt.interface.reports import AdaptationReport, Citation
from refine_server.ttt.kept import dump, restore
from refine_server.ttt.models import CausalLM
from refine_server.ttt.models.loading.loader import wrap
from refine_server.ttt.query_side.query_adaptation import QueryAdaptation, rounded
from support.small_models import Perturbed, tiny_transformers

CPU = torch.device("cpu")
SENTENCE = "The keeper writes the weather into a blue book. "
MEGABYTE = 10**6


def kept(document: str, fast: FastWeights = BASE) -> QueryAdaptation:
    report = AdaptationReport(
        objective="refine",
        steps=(),
        accepted_step=1,
        kept_base_reason=None,
        stopped=None,
        first_ntp_loss=1.0,
        final_ntp_loss=0.5,
        fast_weight_bytes=fast.nbytes,
    )
    return QueryAdaptation(
        owner="ada",
        document=document,
        fast_weights=FastWeights(fast.tensors, "ada"),
        report=report,
        document_tokens=len(document) // 4,
        room=32_768,
        document_key="0" * 64,
        citations=(Citation(start=0, end=3, text=document[:3], score=0.5),),
    )


@pytest.fixture(scope="module")
def like_smollm2() -> CausalLM:
    """A model with SmolLM2-135M's query projections, and small otherwise."""
    shapes: dict[str, Any] = {
        "hidden_size": 576,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "head_dim": 64,
        "intermediate_size": 16,
    }
    return wrap(tiny_transformers("llama", **shapes))


def test_it_takes_less_than_a_megabyte_whatever_the_documents_length(
    like_smollm2: CausalLM,
) -> None:
    fast = rounded(like_smollm2.new_fast_weights("queries", 8, 0))
    own = []
    for tokens in (500, 32_768):
        text = SENTENCE * (tokens * 4 // len(SENTENCE))  # English has some four characters a token
        data, described = dump(kept(text, fast))
        assert len(data) + len(json.dumps(described)) < MEGABYTE
        own.append(len(data) - len(text))
    assert abs(own[0] - own[1]) < 16  # the header spells the text's length, and is aligned


def test_a_restored_adaptation_is_the_same_in_every_bit(
    model: CausalLM, perturbed: Perturbed
) -> None:
    before = kept("Grüße vom Leuchtturm — 灯台 🗼", rounded(perturbed(model, "queries")))
    data, described = dump(before)
    again = restore(data, json.loads(json.dumps(described)), CPU)
    assert isinstance(again, QueryAdaptation)
    assert set(again.fast_weights) == set(before.fast_weights)
    for name in before.fast_weights:
        assert torch.equal(again.fast_weights[name], before.fast_weights[name])
        assert again.fast_weights[name].dtype == before.fast_weights[name].dtype
    for field in ("owner", "document", "report", "document_tokens", "room", "document_key"):
        assert getattr(again, field) == getattr(before, field)
    assert again.citations == before.citations
    assert again.nbytes == before.nbytes


def test_one_that_was_of_no_use_is_kept_without_weights() -> None:
    again = restore(*dump(kept(SENTENCE)), CPU)
    assert again.fast_weights.is_base


def test_rounding_changes_deltas_by_little(model: CausalLM, perturbed: Perturbed) -> None:
    fast = perturbed(model, "queries")
    near = rounded(fast)
    for name in fast:
        torch.testing.assert_close(near[name], fast[name].detach(), rtol=2**-8, atol=0)
    assert all(not tensor.requires_grad for tensor in near.parameters())


def test_damaged_bytes_are_refused() -> None:
    weights = FastWeights({"model.layers.0.q_proj.lora_a": torch.ones(1, 4, 2)})
    data, described = dump(kept(SENTENCE, weights))
    bad = [
        (data[:-20], described),
        (b"", described),
        (data, {**described, "format": 99}),
        (data, {**described, "kind": "keys"}),
        (data, {**described, "dtype": "os.system"}),
        (data, {**described, "report": {"steps": [{}]}}),
        (data, {name: value for name, value in described.items() if name != "room"}),
    ]
    for broken, form in bad:
        with pytest.raises(DamagedError):
            restore(broken, form, CPU)


def test_it_is_its_owners_alone() -> None:
    adaptation = kept(SENTENCE)
    adaptation.require_owner("ada")
    with pytest.raises(IsolationError, match="'ada'"):
        adaptation.require_owner("bob")
