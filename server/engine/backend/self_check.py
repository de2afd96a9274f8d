"""A check that a model adapts and decodes, made before any request is accepted."""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial

from refine_server.server.engine.backend.protocol import Backend
from refine_server.ttt.batching import Program, stream
from refine_server.ttt.interface.config import (
    AdaptConfig,
    OptimizerConfig,
    RolloutConfig,
    SamplingConfig,
)
from refine_server.ttt.interface.errors import RequestError
from refine_server.ttt.interface.events import AnswerCompleted, Emit, Event, never_stop
from refine_server.ttt.interface.requests import AnswerRequest
from refine_server.ttt.programs.encode import EncodedWork

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


WARM_UP_WORDS = (20, 90, 400, 1500)
"""Words of the documents that are read to compile kernels: tiles are chosen by the length."""


def warm_up(backend: Backend) -> None:
    """Let a GPU compile kernels before any request is accepted; do nothing on a CPU.

    Our kernels take a document's length as it comes, so those of a few lengths serve all. What
    still compiles later is in docs/gpu.md.
    """
    if not backend.device.startswith("cuda"):
        return
    decodes = replace(SELF_CHECK, sampling=SamplingConfig(max_tokens=2, ignore_eos=True))
    for words in WARM_UP_WORDS:
        document = " ".join(["weather"] * words)
        try:
            work = backend.encode(replace(decodes, document=document))
        except RequestError:  # longer than any document that is accepted
            return
        for _ in stream(partial(_start, backend, work)):
            pass


def _start(backend: Backend, work: EncodedWork, emit: Emit) -> Program[None]:
    return backend.start(work, emit, never_stop)


def self_check(backend: Backend) -> None:
    """Make one small adaptation step and decode one token, before any request is accepted.

    Raises:
        RuntimeError: the adaptation is not finite, or it changed the base weights.
    """
    work = backend.encode(SELF_CHECK)
    events: Iterator[Event] = stream(partial(_start, backend, work))
    for event in events:
        if isinstance(event, AnswerCompleted) and event.adaptation.kept_base_reason is not None:
            raise RuntimeError(f"self-check failed: {event.adaptation.kept_base_reason}")
    if not backend.is_unchanged():
        raise RuntimeError("self-check failed: it changed the base weights")
