"""A check that a model adapts and decodes, made before any request is accepted."""

from collections.abc import Iterator

from refine_server.server.engine.backend.protocol import Backend
from refine_server.ttt.batching import stream
from refine_server.ttt.interface.config import (
    AdaptConfig,
    OptimizerConfig,
    RolloutConfig,
    SamplingConfig,
)
from refine_server.ttt.interface.events import AnswerCompleted, Event, never_stop
from refine_server.ttt.interface.requests import AnswerRequest

SELF_CHECK = AnswerRequest(
    document="The lighthouse keeper writes the weather into a blue book every evening at eight, "
    "and the harbour master reads it in the morning before the first boat leaves.",
    query="When does the keeper write?",
    adapt=AdaptConfig(
        rollouts=RolloutConfig(positions=1, per_position=2),
        optimizer=OptimizerConfig(steps=1),
        guard="none",
    ),
    sampling=SamplingConfig(max_tokens=1),
)


def self_check(backend: Backend) -> None:
    """Make one small adaptation step and decode one token, before any request is accepted.

    Raises:
        RuntimeError: the adaptation is not finite, or it changed the base weights.
    """
    work = backend.encode(SELF_CHECK)
    events: Iterator[Event] = stream(lambda emit: backend.start(work, emit, never_stop))
    for event in events:
        if isinstance(event, AnswerCompleted) and event.adaptation.kept_base_reason is not None:
            raise RuntimeError(f"self-check failed: {event.adaptation.kept_base_reason}")
    if not backend.verify():
        raise RuntimeError("self-check failed: it changed the base weights")
