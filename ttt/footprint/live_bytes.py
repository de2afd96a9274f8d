"""Count the bytes of all tensors that are alive, and the most that were at any time."""

import threading
import weakref
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from typing_extensions import override

READ_A_NUMBER = torch.ops.aten._local_scalar_dense.default
"""What ``float(tensor)`` calls. On the meta device there is no number to be read: it is 0."""
COPY = torch.ops.aten._to_copy.default
"""What ``tensor.tolist()`` calls before it reads numbers."""


class LiveBytes(TorchDispatchMode):
    """A context in which the bytes of the storages that this thread's operations make are counted.

    Args:
        known: tensors that were there before, which are not counted.
    """

    def __init__(self, known: Iterable[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.peak = 0
        """The most bytes that were alive at once."""
        self.alive = 0
        """The bytes that are alive now."""
        self._storages = {t.untyped_storage()._cdata for t in known}
        self._lock = threading.Lock()  # a storage may be freed by another thread

    @override
    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Run an operation and count what it returns."""
        if func is READ_A_NUMBER and args[0].device.type == "meta":
            return 0.0
        device = (kwargs or {}).get("device")
        if func is COPY and args[0].device.type == "meta" and str(device) == "cpu":
            return torch.zeros(args[0].shape, dtype=args[0].dtype)
        result = func(*args, **(kwargs or {}))
        for value in (result,) if isinstance(result, Tensor) else tree_leaves(result):
            if isinstance(value, Tensor):
                self._count(value)
        return result

    def _count(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        with self._lock:
            if key in self._storages:
                return
            self._storages.add(key)
            self.alive += size
            self.peak = max(self.peak, self.alive)
        weakref.finalize(storage, self._free, key, size)

    def _free(self, key: int, size: int) -> None:
        with self._lock:
            self._storages.discard(key)
            self.alive -= size
