"""The one budget of memory on the model's device: what it is spent on, and what is left."""

import sys
from collections.abc import Callable, Mapping

from refine_server.server.http.errors import ApiError
from refine_server.server.memory.device import DeviceMemory, HostMemory
from refine_server.ttt.footprint import shares

GIB = 2**30


class MemoryBudget:
    """The bytes that the process may take of its device, and what they are spent on.

    There is no limit before ``open``. Every method may be called from any thread.
    """

    def __init__(self) -> None:
        self.total_bytes = sys.maxsize
        """The most that the process may take."""
        self._model_bytes = 0
        self._memory: DeviceMemory = HostMemory()
        self._used: dict[str, Callable[[], int]] = {}

    def open(self, total_bytes: int, memory: DeviceMemory) -> None:
        """Set the limit, and record what the process takes with its model, which it never gives up.

        Args:
            total_bytes: the limit.
            memory: that of the model's device, to which it applies.

        Raises:
            ValueError: the model leaves nothing.
        """
        model_bytes = memory.taken_bytes()
        if model_bytes >= total_bytes:
            raise ValueError(
                f"--memory-bytes (REFINE_MEMORY_BYTES): {total_bytes} is not enough, because the "
                f"process takes {model_bytes} bytes with its model and nothing else"
            )
        self.total_bytes, self._model_bytes, self._memory = total_bytes, model_bytes, memory

    def account(self, kind: str, used: Callable[[], int]) -> None:
        """Count what ``used`` returns, in bytes, as memory of a kind."""
        self._used[kind] = used

    @property
    def adaptation_bytes(self) -> int:
        """The most that kept adaptations may take."""
        return shares.for_adaptations(self._room)

    @property
    def request_bytes(self) -> int:
        """The most that the requests in work may take together."""
        return shares.for_requests(self._room)

    @property
    def activation_bytes(self) -> int:
        """The most that one adaptation step may keep for its backward pass."""
        return shares.for_activations(self._room)

    @property
    def document_bytes(self) -> int:
        """The most that documents as they were read may take now."""
        return max(self._room - self._of("adaptations") - self._of("requests"), 0)

    def require(self, nbytes: int, tokens: int) -> None:
        """Raise 413 if a request can never be served.

        Args:
            nbytes: what it takes at its peak, as predicted.
            tokens: what it reads.
        """
        if nbytes <= self.request_bytes:
            return
        message = (
            f"The work on these {tokens} tokens takes about {nbytes / GIB:.2f} GiB of memory, and "
            f"this server has {self.request_bytes / GIB:.2f} GiB for requests (--memory-bytes). "
            "Send a shorter document, or adapt on the evidence (adapt.on.kind)."
        )
        raise ApiError(413, message, "memory_exceeded", param="document")

    def by_kind(self) -> Mapping[str, int]:
        """Return what the memory is spent on, in bytes by kind.

        ``requests`` is what those in work take at their peak, as predicted; ``allocator`` is what
        the process holds beyond all kinds, such as memory that was freed.
        """
        kinds = {"model": self._model_bytes}
        kinds |= {kind: used() for kind, used in self._used.items()}
        return {**kinds, "allocator": max(self._memory.taken_bytes() - sum(kinds.values()), 0)}

    def exceeds(self, nbytes: int) -> bool:
        """Return whether the process would take more than it may with ``nbytes`` more."""
        return self._memory.taken_bytes() + nbytes > self.total_bytes

    @property
    def _room(self) -> int:
        """What the model leaves."""
        return self.total_bytes - self._model_bytes

    def _of(self, kind: str) -> int:
        used = self._used.get(kind)
        return 0 if used is None else used()
