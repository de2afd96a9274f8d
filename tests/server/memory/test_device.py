"""Memory of the model's device: the budget follows what is free on a GPU, where there is one."""

import pytest
import torch

from refine_server.server.memory.budget import MemoryBudget
from refine_server.server.memory.device import GpuMemory, HostMemory, memory_of
from refine_server.server.memory.keeper import MemoryKeeper
from refine_server.server.settings import Settings
from support.fake_backend import FakeBackend

GIB = 2**30


@pytest.fixture
def emptied(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Stand for a GPU of 80 GiB of which a model took 3; list when its allocator is emptied."""
    emptied: list[str] = []

    class Device:
        def __init__(self, name: str) -> None:
            emptied.append(name)

        def __enter__(self) -> None: ...

        def __exit__(self, *_: object) -> None: ...

    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 3 * GIB)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (77 * GIB, 80 * GIB))
    monkeypatch.setattr(torch.cuda, "device", Device)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    return emptied


@pytest.fixture
def backend() -> FakeBackend:
    backend = FakeBackend()
    backend.device = "cuda:1"
    return backend


def test_every_device_has_its_own_memory() -> None:
    assert isinstance(memory_of("cpu"), HostMemory)
    assert isinstance(memory_of("cuda"), GpuMemory)
    assert isinstance(memory_of("cuda:1"), GpuMemory)


@pytest.mark.usefixtures("emptied")
def test_a_budget_follows_what_is_free_on_the_gpu(backend: FakeBackend) -> None:
    budget = MemoryBudget()
    MemoryKeeper(budget, Settings(model="fake")).opening(lambda _: backend)()
    assert budget.total_bytes == 72 * GIB
    assert budget.by_kind()["model"] == 3 * GIB
    assert budget.activation_bytes == pytest.approx(0.375 * 69 * GIB)
    assert not budget.exceeds(69 * GIB)
    assert budget.exceeds(69 * GIB + 1)


@pytest.mark.usefixtures("emptied")
def test_a_limit_that_was_set_is_of_the_gpu(backend: FakeBackend) -> None:
    budget = MemoryBudget()
    settings = Settings(model="fake", memory_bytes=11 * GIB)
    MemoryKeeper(budget, settings).opening(lambda _: backend)()
    assert budget.request_bytes == 6 * GIB


def test_an_idle_server_keeps_the_gpu_memory_that_it_reserved(
    backend: FakeBackend, emptied: list[str]
) -> None:
    keeper = MemoryKeeper(MemoryBudget(), Settings(model="fake"))
    keeper.opening(lambda _: backend)()
    assert emptied == ["cuda:1"]
    keeper.on_idle()
    assert emptied == ["cuda:1"]
