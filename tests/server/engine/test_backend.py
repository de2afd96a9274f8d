"""Opening a model: what the options decide."""

from collections.abc import Iterator

import pytest
import torch

from refine_server.server.engine.backend import SELF_CHECK, open_backend
from refine_server.server.settings import Settings
from refine_server.ttt.batching import resume


@pytest.fixture
def threads() -> Iterator[int]:
    """Two threads before the test, and what there were after it."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield 2
    torch.set_num_threads(before)


def test_requests_to_a_small_model_share_the_threads_unless_told_otherwise(threads: int) -> None:
    seen = []
    for told in (1, threads, None):
        torch.set_num_threads(threads)
        backend = open_backend(Settings(model="tiny", threads=told))
        encoded = backend.encode(SELF_CHECK)
        first = resume(backend.start(encoded, lambda event: None, lambda: None))
        seen.append((torch.get_num_threads(), first.threads))
    assert seen == [(1, 1), (threads, 1), (1, threads)]
