"""Selection, fast weights and settings: each against its formula."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from refine_server.ttt.fast_weights import FastWeights
from refine_server.ttt.interface.config import AdaptConfig
from refine_server.ttt.refine.positions import select_positions, select_spans


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@given(
    T=st.integers(4, 200),
    chunks=st.integers(1, 16),
    kernel=st.integers(1, 9),
    rule=st.sampled_from(["entropy", "surprise", "uniform", "argmax", "argmin"]),
)
@settings(max_examples=60, deadline=None)
def test_every_chunk_gives_one_position(T: int, chunks: int, kernel: int, rule: str) -> None:
    chunks = min(chunks, T)
    entropy, surprise = torch.rand(2, T, generator=seeded()), torch.rand(2, T, generator=seeded(1))
    index = select_positions(
        entropy, surprise, rule, chunks=chunks, kernel=kernel, generator=seeded()
    )
    size = T // chunks
    assert index.shape == (2, chunks)
    assert (index // size == torch.arange(chunks)).all()


def test_extremes_are_taken_from_the_smoothed_entropy() -> None:
    entropy = torch.tensor([[0.0, 0.0, 0.0, 9.0, 0.0, 5.0, 5.0, 5.0, 0.0, 0.0]])
    common = {"chunks": 1, "kernel": 3, "generator": seeded()}
    assert select_positions(entropy, entropy, "argmax", **common).tolist() == [[6]]
    assert select_positions(entropy, entropy, "argmin", **common).tolist() == [[0]]


def test_spans_of_a_query_are_rolled_out_where_entropy_is_high() -> None:
    entropy, surprise = torch.rand(2, 40, generator=seeded()), torch.zeros(2, 40)
    queried, sampled = (
        select_positions(entropy, surprise, rule, chunks=4, kernel=3, generator=seeded())
        for rule in ("query", "entropy")
    )
    assert torch.equal(queried, sampled)


def test_sampling_follows_the_softmax_of_the_smoothed_entropy() -> None:
    entropy = torch.tensor([[0.0, 1.0, 2.0, 0.5]]).expand(20_000, 4)
    index = select_positions(entropy, -entropy, "entropy", chunks=1, kernel=1, generator=seeded(3))
    frequency = torch.bincount(index.flatten(), minlength=4) / 20_000
    torch.testing.assert_close(frequency, entropy[0].softmax(-1), atol=0.015, rtol=0)


@given(
    T=st.integers(8, 120),
    count=st.integers(1, 12),
    length=st.integers(4, 32),
    rule=st.sampled_from(["entropy", "surprise", "uniform", "argmax", "argmin"]),
)
@settings(max_examples=60, deadline=None)
def test_spans_lie_inside_and_do_not_overlap(T: int, count: int, length: int, rule: str) -> None:
    length = min(length, T)
    scores = torch.rand(T, generator=seeded())
    starts = select_spans(scores, scores, rule, count=count, length=length, generator=seeded())
    assert 1 <= len(starts) <= count
    assert all(0 <= s <= T - length for s in starts)
    assert all(b - a >= length for a, b in itertools.pairwise(starts))


def test_the_most_surprising_span_comes_first() -> None:
    surprise = torch.zeros(100)
    surprise[60:65] = 5.0
    starts = select_spans(
        torch.zeros(100), surprise, "surprise", count=1, length=10, generator=seeded()
    )
    assert starts == [57]


def test_fast_weights_stack_select_save_and_load(tmp_path) -> None:
    a = FastWeights({"m.layers.2.x.lora_a": torch.randn(1, 3), "m.layers.5.y": torch.randn(1, 2)})
    b = a.clone()
    b["m.layers.5.y"].add_(1)
    assert not torch.equal(a["m.layers.5.y"], b["m.layers.5.y"])
    both = FastWeights.stack([a, b])
    assert (both.requests, both.nbytes, a.first_layer) == (2, 40, 2)
    assert torch.equal(both.select(1)["m.layers.5.y"], b["m.layers.5.y"])
    both.save(tmp_path / "fast.safetensors")
    loaded = FastWeights.load(tmp_path / "fast.safetensors")
    assert all(torch.equal(loaded[name], both[name]) for name in both)


def test_fast_weights_refuse_what_does_not_fit() -> None:
    with pytest.raises(ValueError, match="number of requests"):
        FastWeights({"a": torch.zeros(1, 2), "b": torch.zeros(2, 2)})
    with pytest.raises(ValueError, match="same names"):
        FastWeights.stack([FastWeights({"a": torch.zeros(1)}), FastWeights({"b": torch.zeros(1)})])


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"steps": -1}, "steps"),
        ({"chunks": 0}, "chunks"),
        ({"learning_rate": 0.0}, "learning_rate"),
        ({"reward": "luck"}, "reward"),
        ({"unknown": 1}, "unknown"),
        ({"prefix": "full", "ntp_on": "spans"}, "ntp_on"),
        ({"selection": "query"}, "selection='query' needs prefix='local'"),
        ({"prefix": "local", "spans_as": "answer"}, "spans_as='answer' needs selection"),
        ({"chunks": 128, "rollouts": 32}, "chunks"),
        ({"chunks": 128, "rollouts": 4, "demonstration": True}, "chunks"),
    ],
)
def test_settings_out_of_range_are_refused_by_name(change: dict, field: str) -> None:
    with pytest.raises(ValueError, match=field):
        AdaptConfig(**change)
