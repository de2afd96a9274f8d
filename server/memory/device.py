"""The memory that the model's device has, and what this process takes of it."""

from abc import ABC, abstractmethod
from typing import ClassVar

import psutil
from typing_extensions import override

from refine_server.server.memory.allocator import resident_bytes, return_freed_memory

RESERVE_SHARE = 10
"""A tenth of what this process could take is left to others, unless ``--memory-bytes`` is set."""


class DeviceMemory(ABC):
    """The memory in which the model, states and activations lie."""

    returns_when_idle: ClassVar[bool]
    """Whether others should get what was freed as soon as there is no work."""

    @abstractmethod
    def taken_bytes(self) -> int:
        """Return what this process takes, freed memory that its allocator holds included."""

    @abstractmethod
    def free_bytes(self) -> int:
        """Return what this process could take beyond that now."""

    @abstractmethod
    def return_freed(self) -> None:
        """Let the allocator return what was freed, so that others can take it."""

    def default_budget(self) -> int:
        """Return what is free now together with what this process takes, less a reserve."""
        total = self.taken_bytes() + self.free_bytes()
        return total - total // RESERVE_SHARE


class HostMemory(DeviceMemory):
    """The machine's memory (RAM), within the limits of this process's control groups."""

    returns_when_idle = True

    @override
    def taken_bytes(self) -> int:
        return resident_bytes()

    @override
    def free_bytes(self) -> int:
        from refine_server.ttt.models.loading.host_memory import available_memory  # imports torch

        free = available_memory()
        return psutil.virtual_memory().total - resident_bytes() if free is None else free

    @override
    def return_freed(self) -> None:
        return_freed_memory()


class GpuMemory(DeviceMemory):
    """The memory of one GPU, through torch's caching allocator.

    Args:
        device: such as ``cuda:1``.
    """

    returns_when_idle = False  # it is rarely shared, and the next request would wait for it

    def __init__(self, device: str) -> None:
        self._device = device

    @override
    def taken_bytes(self) -> int:
        import torch

        return torch.cuda.memory_reserved(self._device)

    @override
    def free_bytes(self) -> int:
        import torch

        free, _ = torch.cuda.mem_get_info(self._device)
        return free

    @override
    def return_freed(self) -> None:
        import torch

        return_freed_memory()  # of the host, where graphs are collected
        with torch.cuda.device(self._device):
            torch.cuda.empty_cache()


def memory_of(device: str) -> DeviceMemory:
    """Return the memory of a device, named as torch does."""
    return GpuMemory(device) if device.startswith("cuda") else HostMemory()
