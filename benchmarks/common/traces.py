"""Steps of an adaptation, as they are stored with an answer: bounded in size."""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

from pydantic import BaseModel

MAX_BYTES = 2**20
"""Bytes that the traces of one answer take at most; those of later steps are left out."""
LEFT_OUT = "trace_left_out"


class History(Protocol):
    """What an adaptation did, as the server's response or the library has it."""

    @property
    def steps(self) -> Sequence[BaseModel]: ...
    @property
    def held_out(self) -> Sequence[BaseModel]: ...
    @property
    def accepted_step(self) -> int: ...
    @property
    def stopped(self) -> str | None: ...


def stored_history(history: History | None) -> dict[str, Any]:
    """Return the fields of a row: steps, held-out evaluations, and how the adaptation ended."""
    if history is None:
        return {"steps": [], "held_out": [], "accepted_step": 0, "stopped": None}
    return {
        "steps": stored_steps(step.model_dump(mode="json") for step in history.steps),
        "held_out": [result.model_dump(mode="json") for result in history.held_out],
        "accepted_step": history.accepted_step,
        "stopped": history.stopped,
    }


def stored_steps(steps: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the reports of steps for a row, with as many of their traces as have room.

    A step whose trace is left out says so in its field ``trace_left_out``; one that was made
    without a trace has neither field.
    """
    room, stored = MAX_BYTES, []
    for step in steps:
        row = {name: value for name, value in step.items() if name != "trace"}
        if (trace := step.get("trace")) is not None:
            size = len(json.dumps(trace))
            row |= {"trace": trace} if size <= room else {LEFT_OUT: size}
            room = max(room - size, 0)
        stored.append(row)
    return stored
