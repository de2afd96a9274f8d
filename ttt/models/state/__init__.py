"""What a model remembers of the tokens it has read: the state after them, and how to copy it."""

from refine_server.ttt.models.state.base import Cat, LayerState, State, Trace, cat_padded
from refine_server.ttt.models.state.delta import DeltaState, DeltaTrace, with_past_inputs
from refine_server.ttt.models.state.key_value import (
    KVRows,
    KVRowsTrace,
    KVState,
    KVTrace,
    WindowKVState,
)
from refine_server.ttt.models.state.storage import (
    STORABLE,
    cast_floats,
    compact,
    field_names,
    storable,
)

__all__ = [
    "STORABLE",
    "Cat",
    "DeltaState",
    "DeltaTrace",
    "KVRows",
    "KVRowsTrace",
    "KVState",
    "KVTrace",
    "LayerState",
    "State",
    "Trace",
    "WindowKVState",
    "cast_floats",
    "cat_padded",
    "compact",
    "field_names",
    "storable",
    "with_past_inputs",
]
