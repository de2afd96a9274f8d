"""Where a command's events come from: a model in this process, or a server."""

import itertools
import json
import secrets
import time
from collections.abc import Iterator
from typing import Any, TypeVar

from pydantic import BaseModel

from refine_server.clients import RefineClient, errors
from refine_server.clients.types import Adaptation
from refine_server.server.api.answers_schema import AnswerBody, Origin, wire_event
from refine_server.server.api.stream_events import Cost
from refine_server.server.cli.exit import InputError
from refine_server.server.cli.progress import WireEvent
from refine_server.server.engine.backend.opening import open_backend
from refine_server.server.engine.backend.protocol import Backend
from refine_server.server.engine.events import Accepted, RunEvent
from refine_server.server.engine.progress import ProgressTracker
from refine_server.server.engine.scheduling.cost_model import CostModel
from refine_server.server.engine.scheduling.estimate import Estimate
from refine_server.server.http.errors import ApiError
from refine_server.server.http.json_body import parse_json
from refine_server.server.http.validation import validated
from refine_server.server.settings import Settings
from refine_server.ttt.batching import stream
from refine_server.ttt.interface.events import Event, never_stop
from refine_server.ttt.programs.encode import EncodedAnswer

B = TypeVar("B", bound=BaseModel)


def parse_body(body: dict[str, Any], kind: type[B]) -> B:
    """Check a request body as a server does.

    Raises:
        InputError: a field is invalid; the message names it.
    """
    try:
        return validated(kind, parse_json(json.dumps(body).encode()))
    except ApiError as error:
        raise InputError(str(error)) from None


def answer_in_process(body: AnswerBody, settings: Settings) -> Iterator[WireEvent]:
    """Load the model into this process and answer, with the events that a server would stream.

    What the work costs is measured before an adaptation only, which takes far longer than that.

    Raises:
        ModelError: the model does not exist or cannot be loaded.
        RequestError: the request cannot be served as written.
    """
    backend = open_backend(settings)
    encoded = _encode(body, backend, settings)
    adapts = body.adapt.objective != "none"
    estimate = _estimate(encoded, backend) if adapts else None
    began, job_id = time.monotonic(), secrets.token_hex(16)
    tracker = ProgressTracker(estimate, began)
    total = None if estimate is None else estimate.total
    accepted = Accepted(queue_position=0, estimate=estimate, seconds_left=total)
    events: Iterator[Event] = stream(lambda emit: backend.start(encoded, emit, never_stop))
    for event in itertools.chain[RunEvent]([accepted], events):
        now = time.monotonic()
        tracker.update(event, now)
        origin = Origin(
            job_id=job_id,
            model=backend.name,
            total_seconds=now - began,
            steps=tracker.steps,
            seconds_left=tracker.seconds_left(now),
        )
        if (wire := wire_event(event, origin)) is not None:
            name, data = wire
            yield name, data.model_dump(mode="json")


def estimate_in_process(body: AnswerBody, settings: Settings) -> dict[str, Any]:
    """Load the model into this process and measure what an answer would cost.

    Raises:
        ModelError: the model does not exist or cannot be loaded.
        RequestError: the request cannot be served as written.
    """
    backend = open_backend(settings)
    encoded = _encode(body, backend, settings)
    return {
        "object": "estimate",
        "model": backend.name,
        "document_tokens": encoded.tokens,
        "query_tokens": len(encoded.query),
        "estimate": Cost.of(_estimate(encoded, backend)).model_dump(mode="json"),
    }


def _encode(body: AnswerBody, backend: Backend, settings: Settings) -> EncodedAnswer:
    text = body.required_document()
    assert isinstance(text, str)  # files are those of a server
    encoded = backend.encode(body.to_work(text, body.sampling(settings.max_tokens)))
    assert isinstance(encoded, EncodedAnswer)
    return encoded


def _estimate(encoded: EncodedAnswer, backend: Backend) -> Estimate:
    """Measure the model on a small piece of work, and estimate work by that."""
    costs = CostModel()
    costs.on_opened(backend)
    return costs.estimate(encoded.request, encoded.tokens, backend.request_bytes(encoded))


def estimate_by_server(url: str, api_key: str | None, body: dict[str, Any]) -> dict[str, Any]:
    """Ask a server what an answer, or without a query an adaptation, would cost.

    Raises:
        ClientError: the server refused, failed, went away or cannot be reached.
    """
    with RefineClient(url, api_key=api_key) as client:
        ask = client.estimate if "query" in body else client.estimate_adaptation
        return ask(**body).model_dump(mode="json")


def answer_by_server(url: str, api_key: str | None, body: dict[str, Any]) -> Iterator[WireEvent]:
    """Have a server answer, and yield the events of its stream.

    Raises:
        ClientError: the server refused, failed, went away or cannot be reached.
    """
    with RefineClient(url, api_key=api_key) as client:
        for event in client.stream_answer(**body):
            yield event.name, event.model_dump(mode="json")


def adapt_by_server(
    url: str, api_key: str | None, document: str, **options: Any
) -> Iterator[WireEvent]:
    """Have a server adapt to a document and keep the result; ``adaptation.ready`` comes last.

    Raises:
        ClientError: the server refused, failed, went away or cannot be reached.
    """
    with RefineClient(url, api_key=api_key) as client:
        adaptation = client.adapt(document, **options)
        for event in client.follow_adaptation(adaptation.id):
            if isinstance(event, Adaptation):
                yield "adaptation.ready", errors.ready(event).model_dump(mode="json")
            else:
                yield event.name, event.model_dump(mode="json")
