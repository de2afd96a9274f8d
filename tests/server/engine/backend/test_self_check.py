"""Before the first request: a GPU has compiled its kernels, a CPU has lost no time."""

import pytest

from refine_server.server.engine.backend.self_check import WARM_UP_WORDS, warm_up
from support.fake_backend import FakeBackend


def test_a_gpu_compiles_kernels_for_several_lengths(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeBackend()
    monkeypatch.setattr(fake, "device", "cuda:1")
    warm_up(fake)
    # This model refuses longer documents, and nobody minds.
    assert 1 <= len(fake.closed) < len(WARM_UP_WORDS)


def test_a_cpu_loses_no_time() -> None:
    fake = FakeBackend()
    warm_up(fake)
    assert not fake.closed
