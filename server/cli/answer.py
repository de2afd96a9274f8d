"""``refine-server answer`` and ``adapt``: in this process, or by a server."""

import secrets
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from refine_server.clients import RefineClient, errors
from refine_server.clients.types import Adaptation
from refine_server.server.api.answers_schema import AnswerBody, Origin, wire_event
from refine_server.server.engine.backend import open_backend
from refine_server.server.http.errors import invalid_body
from refine_server.server.settings import Settings
from refine_server.ttt.batching import stream
from refine_server.ttt.interface.events import Event

WireEvent = tuple[str, dict[str, Any]]


class InputError(ValueError):
    """Something that was asked for cannot be; the message says what to change."""


def read_document(path: str) -> str:
    """The text of a file, or of stdin when the path is ``-``."""
    try:
        data = sys.stdin.buffer.read() if path == "-" else Path(path).read_bytes()
        return data.decode()
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text: {error.reason}") from None


def parse_body(body: dict[str, Any]) -> AnswerBody:
    """The body as a server would take it; raises InputError naming the field at fault."""
    try:
        return AnswerBody.model_validate(body)
    except ValidationError as error:
        raise InputError(str(invalid_body(error.errors()))) from None


def answer_here(body: AnswerBody, settings: Settings) -> Iterator[WireEvent]:
    """Load the model into this process and answer, with the events that a server would stream."""
    from refine_server.ttt.models import ModelError  # imports torch, which --url does not need

    try:
        backend = open_backend(settings)
    except ModelError as error:
        raise InputError(str(error)) from None
    origin = Origin(secrets.token_hex(16), backend.name)
    encoded = backend.encode(body.to_work(body.sampling(settings.max_tokens)))
    events: Iterator[Event] = stream(lambda emit: backend.start(encoded, emit, lambda: None))
    for event in events:
        told = wire_event(event, origin)
        if told is not None:
            name, data = told
            yield name, data.model_dump(mode="json")


def adapt_there(
    url: str, api_key: str | None, document: str, **options: Any
) -> Iterator[WireEvent]:
    """Have a server adapt to a document and keep it; the events, ``adaptation.ready`` last.

    Raises:
        ClientError: the server refused, failed, went away or is not there.
    """
    with RefineClient(url, api_key=api_key) as client:
        adaptation = client.adapt(document, **options)
        for event in client.follow_adaptation(adaptation.id):
            if isinstance(event, Adaptation):
                yield "adaptation.ready", errors.ready(event).model_dump(mode="json")
            else:
                yield event.name, event.model_dump(mode="json")


def answer_there(url: str, api_key: str | None, body: dict[str, Any]) -> Iterator[WireEvent]:
    """Ask a server; the events of its stream.

    Raises:
        ClientError: the server refused, failed, went away or is not there.
    """
    with RefineClient(url, api_key=api_key) as client:
        for event in client.stream_answer(**body):
            yield event.name, event.model_dump(mode="json")
