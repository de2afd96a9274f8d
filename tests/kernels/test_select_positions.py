"""Positions in Triton equal the definition's for the same noise."""

import pytest
import torch

pytest.importorskip("triton")

from refine_server.kernels.select_positions import naive, smooth
from refine_server.kernels.select_positions import triton_impl as form

pytestmark = pytest.mark.usefixtures("nan_scratch")


def test_smoothing_pads_with_zeros_and_widens_even_kernels() -> None:
    scores = torch.tensor([[3.0, 6.0, 9.0]])
    expected = torch.tensor([[3.0, 6.0, 5.0]])
    torch.testing.assert_close(smooth(scores, 3), expected)
    torch.testing.assert_close(smooth(scores, 2), expected)
    torch.testing.assert_close(smooth(scores, 1), scores)


@pytest.mark.parametrize("T", [1, 63, 257, 3001])
@pytest.mark.parametrize("kernel", [1, 4])
@pytest.mark.parametrize("rule", ["sample", "uniform", "argmax", "argmin"])
def test_positions(T: int, kernel: int, rule: str, dtype: torch.dtype) -> None:
    chunks = min(T, 2)
    scores = torch.rand(3, T).mul(5).to(dtype)
    noise = torch.rand(3, chunks, T // chunks)
    noise[0, 0, 0] = 0.0
    settings = {"chunks": chunks, "kernel": kernel, "rule": rule}
    expected = naive.select_positions(scores.float(), noise, **settings)
    assert torch.equal(form.select_positions(scores, noise, **settings), expected)


def test_no_rows() -> None:
    empty = torch.empty(0, 10)
    index = form.select_positions(empty, None, chunks=2, kernel=3, rule="argmax")
    assert index.shape == (0, 2)


def test_nan_stays_within_its_row_and_positions_stay_in_range() -> None:
    scores, noise = torch.rand(3, 100), torch.rand(3, 4, 25)
    settings = {"chunks": 4, "kernel": 5, "rule": "sample"}
    clean = form.select_positions(scores, noise, **settings)
    scores[1] = float("nan")
    poisoned = form.select_positions(scores, noise, **settings)
    assert torch.equal(poisoned[[0, 2]], clean[[0, 2]])
    assert (poisoned[1] // 25 == torch.arange(4)).all()
