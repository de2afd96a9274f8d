"""Which states can be written and read back, and copies that keep nothing else alive."""

from dataclasses import fields
from typing import Any, TypeVar, cast

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
    if isinstance(value, Tensor):
        return cast(T, value.detach().clone())
    if type(value).__name__ in STORABLE:
        kind = STORABLE[type(value).__name__]
        return cast(T, kind(**{name: compact(getattr(value, name)) for name in field_names(kind)}))
    if isinstance(value, tuple):
        return cast(T, tuple(compact(item) for item in value))
    return value
