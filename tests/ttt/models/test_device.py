"""A GPU's memory and clock, on a machine without one."""

import pytest
import torch

from refine_server.ttt.models.device import free_memory, synchronize, to_host

CUDA = torch.device("cuda", 1)


def test_cached_memory_is_free_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda d: (asked.append(d), (100, 900))[1])
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda d: 70)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda d: 50)
    assert free_memory(CUDA) == 120
    assert asked == [CUDA]
    assert free_memory(torch.device("cpu")) is None


def test_seconds_end_when_the_device_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "synchronize", waited.append)
    synchronize(CUDA)
    synchronize(torch.device("cpu"))
    assert waited == [CUDA]


def test_tensors_of_the_host_are_only_made_contiguous() -> None:
    whole = torch.arange(6).view(2, 3)
    copies = to_host({"a": whole, "b": whole.T})
    assert copies["a"] is whole
    assert copies["b"].is_contiguous()
    assert torch.equal(copies["b"], whole.T)
