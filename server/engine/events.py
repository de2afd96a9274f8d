"""Events of a run: those of its program, and what the engine tells of its way."""

from dataclasses import dataclass
from typing import Literal

from refine_server.server.engine.scheduling.estimate import Estimate
from refine_server.ttt.interface.events import Event

Phase = Literal["queued", "reading", "adapting", "judging", "answering"]
"""What is being done for a run. Weights are judged, and the document is read again under them,
between the last step and the first token."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Accepted:
    """The work is in the queue. The first event of every run."""

    queue_position: int
    """Place in the queue, from 1 on; 0 where nothing has to be waited for."""
    estimate: Estimate | None
    """What the work costs, not counting that of others; None where nothing was measured."""
    seconds_left: float | None
    """Estimated seconds until its end, with what is waited for."""


@dataclass(frozen=True, kw_only=True, slots=True)
class QueueMoved:
    """The work has another place in the queue; 0: its turns begin."""

    queue_position: int
    seconds_left: float
    """Estimated seconds until its end, with what is waited for."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Progress:
    """How far the work is; told where nothing else was for a while."""

    phase: Phase
    seconds: float
    """Time since it was accepted."""
    seconds_left: float | None
    """Estimated seconds until its end; None while nothing was measured."""


RunEvent = Accepted | QueueMoved | Progress | Event
"""What a run yields."""
