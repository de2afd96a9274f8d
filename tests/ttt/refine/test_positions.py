"""Positions are selected by the paper's formula, one in each chunk."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from refine_server.ttt.interface.config import Selection
from refine_server.ttt.refine.positions import select_positions


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@given(
    T=st.integers(4, 200),
    chunks=st.integers(1, 16),
    kernel=st.integers(1, 9),
    rule=st.sampled_from(["entropy", "surprise", "uniform", "argmax", "argmin"]),
)
@settings(max_examples=60, deadline=None)
def test_every_chunk_gives_one_position(T: int, chunks: int, kernel: int, rule: Selection) -> None:
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
