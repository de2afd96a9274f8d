"""Opening a model: what the options decide."""

from collections.abc import Iterator

import pytest
import torch

from refine_server.server.backend import open_backend
from refine_server.server.settings import Settings


@pytest.fixture
def threads() -> Iterator[int]:
    """Two threads before the test, and what there were after it."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield 2
    torch.set_num_threads(before)


def test_a_small_model_runs_in_one_thread_unless_told_otherwise(threads: int) -> None:
    open_backend(Settings(model="tiny", threads=threads))
    assert torch.get_num_threads() == threads
    open_backend(Settings(model="tiny"))
    assert torch.get_num_threads() == 1
