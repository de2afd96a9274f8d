"""Where a command's events come from: a model in this process, or a server."""

import json
import secrets
from collections.abc import Iterator
from typing import Any, TypeVar

from pydantic import BaseModel

from refine_server.clients import RefineClient, errors
from refine_server.clients.types import Adaptation
from refine_server.server.api.answers_schema import AnswerBody, Origin, wire_event
from refine_server.server.cli.exit import InputError
from refine_server.server.cli.progress import WireEvent
from refine_server.server.engine.backend.opening import open_backend
from refine_server.server.http.errors import ApiError
from refine_server.server.http.json_body import parse_json
from refine_server.server.http.validation import validated
from refine_server.server.settings import Settings
from refine_server.ttt.batching import stream
from refine_server.ttt.interface.events import Event

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

    Raises:
        ModelError: the model does not exist or cannot be loaded.
        RequestError: the request cannot be served as written.
    """
    backend = open_backend(settings)
    origin = Origin(job_id=secrets.token_hex(16), model=backend.name)
    text = body.required_document()
    assert isinstance(text, str)  # files are those of a server
    encoded = backend.encode(body.to_work(text, body.sampling(settings.max_tokens)))
    events: Iterator[Event] = stream(lambda emit: backend.start(encoded, emit, lambda: None))
    for event in events:
        if (wire := wire_event(event, origin)) is not None:
            name, data = wire
            yield name, data.model_dump(mode="json")


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
