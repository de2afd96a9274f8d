"""Values of integer tensors on the host, asked for once."""

import threading
from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

_known: Any = WeakIdKeyDictionary()
_lock = threading.Lock()


def host_values(tensor: Tensor) -> Any:
    """Return the values of a tensor that is not written to, as nested lists.

    The host waits for a GPU the first time; all layers of a model ask for the same positions.
    """
    if tensor.is_cpu:  # nobody waits for these, and looking them up would take longer
        return tensor.tolist()
    with _lock:
        found = _known.get(tensor)
    return remember(tensor, tensor.tolist()) if found is None else found


def remember(tensor: Tensor, values: Any) -> Any:
    """Note the values that a tensor was made of, so that nobody waits for them; return them."""
    if not tensor.is_cpu:
        with _lock:
            _known[tensor] = values
    return values


def derive(source: Tensor, result: Tensor, change: Callable[[Any], Any]) -> Tensor:
    """Note what a tensor that was derived from another holds, if that one's values are known.

    Args:
        source: was changed into ``result``.
        result: is returned.
        change: makes the values of ``result`` of those of ``source``.
    """
    if source.is_cpu:
        return result
    with _lock:
        found = _known.get(source)
    if found is not None:
        remember(result, change(found))
    return result
