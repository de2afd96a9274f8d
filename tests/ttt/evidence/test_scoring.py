"""Chunks by the model: what makes the question more likely, and what it attends to."""

from collections.abc import Sequence

import pytest
import torch
import torch.nn.functional as F

from refine_server.ttt.evidence import scoring
from refine_server.ttt.evidence.chunks import Chunk
from refine_server.ttt.evidence.scoring import score_by_attention, score_by_utility
from refine_server.ttt.fast_weights import BASE
from refine_server.ttt.models import CausalLM, load
from refine_server.ttt.query_side.attention_target import SINK_TOKENS
from refine_server.ttt.query_side.frozen_document import FrozenDocument
from support.small_models import Families

HEADER, QUESTION = [5, 9, 3], [7, 1, 8, 2, 11]
CHUNKS = [[4], [6, 2, 9], [7, 1, 8, 2, 11, 30], list(range(20, 50)), [6, 2, 9]]


def question_loss(model: CausalLM, context: Sequence[int]) -> float:
    """The definition, of one context by itself."""
    ids = torch.tensor([[*context, *QUESTION]])
    logits = model(ids).logits[0, len(context) : -1]
    return float(F.cross_entropy(logits, torch.tensor(QUESTION[1:])))


@pytest.mark.parametrize("header", [[], HEADER])
@pytest.mark.parametrize("batch", [1, 3, 8])
def test_a_batch_gives_what_each_chunk_gives_by_itself(
    model: CausalLM, header: list[int], batch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scoring, "BATCH", batch)
    without = question_loss(model, header)
    expected = [without - question_loss(model, [*header, *chunk]) for chunk in CHUNKS]
    found = score_by_utility(model, header, QUESTION, CHUNKS)
    assert found == pytest.approx(expected, rel=1e-9, abs=1e-9)
    assert max(map(abs, found)) > 1e-3


def test_a_chunk_that_says_what_is_asked_about_is_useful() -> None:
    model = load("tiny")

    def ids(text: str) -> list[int]:
        return list(model.tokenizer(text, add_special_tokens=False)["input_ids"])

    about = ids(" The harbour code is amber.")
    other = ids(" The old man walked along the path.")
    question = ids("\n\nQuestion: What is the harbour code?\nAnswer:")
    found = score_by_utility(model, [], question, [other, about])
    assert found[1] > max(found[0], 0)


def test_attention_is_that_of_the_questions_last_token_without_the_sinks(
    families: Families,
) -> None:
    model = families["overlay"](torch.float64)
    document = FrozenDocument.read(model, torch.arange(24)[None], context_tokens=2)
    chunks = [Chunk(start=at, end=at + 11, first=0, last=1) for at in (0, 11)]
    layer = model.attention_layers[1]
    found = score_by_attention(document, QUESTION, chunks, layer)

    question = torch.tensor([QUESTION])
    [weights] = model.attention_to_prefix(question, document.state, BASE, [layer])
    mean = weights[0].mean(0)
    first = float(mean[SINK_TOKENS:13].sum() / 11)
    assert found == pytest.approx([first, float(mean[13:24].mean())])
    assert min(found) > 0
