"""Which states can be written and read back, and copies that keep nothing else alive."""

from collections.abc import Callable
from dataclasses import fields
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

T = TypeVar("T")

STORABLE: dict[str, type[Any]] = {}
"""Classes whose instances can be written and read back, by the name that is written."""


def storable(kind: type[T]) -> type[T]:
    """Register a dataclass or named tuple of tensors, tuples, numbers and other storables."""
    STORABLE[kind.__name__] = kind
    return kind


def field_names(kind: type[Any]) -> tuple[str, ...]:
    """Return the names of a storable class's fields."""
    return getattr(kind, "_fields", None) or tuple(f.name for f in fields(kind))


def compact(value: T) -> T:
    """Copy a state into tensors of its own: none is a view that keeps a larger one alive."""
    return _map_tensors(value, lambda tensor: tensor.detach().clone())


def cast_floats(value: T, dtype: torch.dtype) -> T:
    """Return a state with all its floating-point tensors in ``dtype``."""
    return _map_tensors(value, lambda t: t.to(dtype) if t.is_floating_point() else t)


def _map_tensors(value: T, change: Callable[[Tensor], Tensor]) -> T:
    if isinstance(value, Tensor):
        return cast(T, change(value))
    if type(value).__name__ in STORABLE:
        kind = STORABLE[type(value).__name__]
        parts = {n: _map_tensors(getattr(value, n), change) for n in field_names(kind)}
        return cast(T, kind(**parts))
    if isinstance(value, tuple):
        return cast(T, tuple(_map_tensors(item, change) for item in value))
    return value
