"""Decoding: stop strings in pieces, and sampling."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from refine_server.ttt.decoding.sampling import sample
from refine_server.ttt.decoding.stop_strings import StopStrings
from refine_server.ttt.interface.config import SamplingConfig


@given(
    text=st.text(alphabet="ab#", max_size=40),
    cuts=st.lists(st.integers(0, 40), max_size=8),
    stops=st.lists(st.text(alphabet="ab#", min_size=1, max_size=4), max_size=3),
)
def test_stop_strings_do_not_depend_on_how_the_text_is_cut(text, cuts, stops) -> None:
    expected = text
    ends = [text.find(s) for s in stops if s in text]
    # A stop string is found once it is complete, so the first to be completed ends the text.
    edges = [0, *sorted(min(c, len(text)) for c in cuts), len(text)]
    whole = StopStrings(stops)
    one_by_one = "".join(whole.feed(c) for c in text if not whole.hit)
    expected = one_by_one + whole.rest()
    seen = StopStrings(stops)
    pieces = [seen.feed(text[a:b]) for a, b in itertools.pairwise(edges) if not seen.hit]
    result = "".join(pieces) + seen.rest()
    assert seen.hit is bool(ends) is whole.hit
    assert not any(s in result for s in stops)
    assert text.startswith(result)
    if not ends:
        assert result == expected == text


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize(
    "sampling",
    [{"temperature": t} for t in (0.0, -0.0, 5e-324, 1e-320, 1e-45, 1e-40, 1e-30, 1e-6)]
    + [{"temperature": 1.0, "top_p": p} for p in (5e-324, 1e-320, 1e-45, 1e-40, 1e-30)]
    + [{"temperature": 1e-5, "top_p": 1e-50}],
)
def test_the_ends_of_both_ranges_take_the_best_token(
    dtype: torch.dtype, sampling: dict[str, float]
) -> None:
    # The first of equals, as argmax takes it.
    logits = torch.tensor([-3e4, 3e4, 1.0, 3e4], dtype=dtype)
    generator = torch.Generator().manual_seed(0)
    config = SamplingConfig(**sampling)  # type: ignore[arg-type]
    assert {sample(logits, config, generator) for _ in range(20)} == {1}


@pytest.mark.parametrize("top_p", [0.9, 1.0])
def test_only_the_chosen_token_leaves_the_device(
    top_p: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("the probabilities were copied to the host")

    monkeypatch.setattr(torch.Tensor, "cpu", refuse)
    monkeypatch.setattr(torch.Tensor, "tolist", refuse)
    sampling = SamplingConfig(temperature=1.0, top_p=top_p)
    assert 0 <= sample(torch.randn(50), sampling, torch.Generator().manual_seed(0)) < 50


def test_tokens_are_drawn_as_often_as_they_are_likely() -> None:
    p = torch.tensor([0.5, 0.05, 0.3, 0.15])
    generator = torch.Generator().manual_seed(0)
    for top_p, kept in ((1.0, p), (0.9, torch.tensor([0.5, 0.0, 0.3, 0.15]) / 0.95)):
        sampling = SamplingConfig(temperature=1.0, top_p=top_p)
        drawn = [sample(p.log(), sampling, generator) for _ in range(2000)]
        assert torch.allclose(
            torch.bincount(torch.tensor(drawn), minlength=4) / 2000, kept, atol=0.04
        )


@pytest.mark.parametrize("top_p", [0.1, 0.6, 1.0])
def test_top_p_keeps_the_smallest_set_of_that_mass(top_p: float) -> None:
    logits = torch.tensor([0.5, 0.3, 0.15, 0.05]).log()
    generator = torch.Generator().manual_seed(0)
    sampling = SamplingConfig(temperature=1.0, top_p=top_p)
    drawn = {sample(logits, sampling, generator) for _ in range(300)}
    assert drawn == {0.1: {0}, 0.6: {0, 1}, 1.0: {0, 1, 2, 3}}[top_p]
