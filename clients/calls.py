"""Every request of the clients: what is sent, and what is made of the response."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Generic, TypeVar

import httpx

from refine_server.clients import types
from refine_server.clients.arguments import check_text, encode_body, encode_segment
from refine_server.clients.options import (
    AdaptationChanges,
    AdaptationOptions,
    AnswerOptions,
    DocumentFile,
)
from refine_server.clients.types import Adaptation, Answer, Document, Estimate, Model, Version
from refine_server.clients.wire import Event

T = TypeVar("T")
E = TypeVar("E")
L = TypeVar("L")


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """One HTTP request."""

    method: str
    path: str
    content: bytes | None = None
    """The body, in JSON."""
    file: tuple[str, bytes] | None = None
    """A file as the body's form, by its name, instead of JSON."""
    repeatable: bool = False
    """Whether sending it twice does no more than sending it once."""
    about: Mapping[str, object] = field(default_factory=dict)
    """Arguments with the document or the adaptation, of which the session is computed."""
    is_streamed: ClassVar[bool] = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Call(Request, Generic[T]):
    """A request that is answered as a whole."""

    parse: Callable[[httpx.Response], T]


@dataclass(frozen=True, kw_only=True, slots=True)
class Stream(Request, Generic[E, L]):
    """A request that is answered by a stream of events."""

    is_streamed: ClassVar[bool] = True
    decode: Callable[[str, dict[str, Any]], E]
    """Makes a typed event of an event's name and data."""
    last: type[L]
    """The type of the event that ends the stream."""


def answer(query: str, options: AnswerOptions) -> Stream[Event, Answer]:
    """Ask a question. The answer is streamed, so that a server that is gone is noticed at once."""
    body = encode_body({"query": query, **options, "stream": True})
    return Stream(
        method="POST",
        path="/v1/answers",
        content=body,
        about=options,
        decode=types.event_of,
        last=Answer,
    )


def adapt(document: str | DocumentFile, options: AdaptationOptions) -> Call[Adaptation]:
    """Adapt to a document. It is repeatable, as the server joins equal adaptations."""
    return Call(
        method="POST",
        path="/v1/adaptations",
        content=encode_body({"document": document, **options}),
        about={"document": document},
        repeatable=True,
        parse=lambda response: Adaptation.model_validate(response.json()),
    )


def estimate(body: Mapping[str, object]) -> Call[Estimate]:
    """Ask what a request with this body would cost."""
    return Call(
        method="POST",
        path="/v1/estimate",
        content=encode_body(body),
        about=body,
        repeatable=True,
        parse=lambda response: Estimate.model_validate(response.json()),
    )


def adaptation(adaptation_id: str) -> Call[Adaptation]:
    """Read the state of an adaptation."""
    return _get(
        _path(adaptation_id), Adaptation.model_validate, about={"adaptation": adaptation_id}
    )


def adaptations() -> Call[list[Adaptation]]:
    """List adaptations."""
    return _get("/v1/adaptations", types.adaptations_of)


def adaptation_events(adaptation_id: str) -> Stream[Event | Adaptation, Adaptation]:
    """Follow an adaptation."""
    return Stream(
        method="GET",
        path=f"{_path(adaptation_id)}/events",
        about={"adaptation": adaptation_id},
        repeatable=True,
        decode=types.adaptation_event_of,
        last=Adaptation,
    )


def change_adaptation(adaptation_id: str, changes: AdaptationChanges) -> Call[Adaptation]:
    """Name an adaptation, or pin it."""
    return Call(
        method="PATCH",
        path=_path(adaptation_id),
        content=encode_body(changes),
        about={"adaptation": adaptation_id},
        repeatable=True,
        parse=lambda response: Adaptation.model_validate(response.json()),
    )


def delete_adaptation(adaptation_id: str) -> Call[None]:
    """Delete an adaptation. It is not repeatable, as the second time it would not be found."""
    return Call(
        method="DELETE",
        path=_path(adaptation_id),
        about={"adaptation": adaptation_id},
        parse=lambda _: None,
    )


def upload_document(data: bytes, filename: str) -> Call[Document]:
    """Have the text of a document read and kept."""
    return Call(
        method="POST",
        path="/v1/documents",
        file=(check_text("filename", filename), data),
        parse=lambda response: Document.model_validate(response.json()),
    )


def document(file_id: str) -> Call[Document]:
    """Read a document's text."""
    return _get(f"/v1/documents/{encode_segment('file_id', file_id)}", Document.model_validate)


def models() -> Call[list[Model]]:
    """List models."""
    return _get("/v1/models", types.models_of)


def version() -> Call[Version]:
    """Read the server's version."""
    return _get("/version", Version.model_validate)


def adapt_defaults(on: str) -> Call[dict[str, Any]]:
    """Read the defaults of ``adapt`` from the server's OpenAPI document."""
    return _get("/openapi.json", lambda openapi: types.adapt_defaults_of(openapi, on))


def metrics() -> Call[str]:
    """Read the server's metrics."""
    return Call(
        method="GET", path="/metrics", repeatable=True, parse=lambda response: response.text
    )


def tokenize(text: str) -> Call[list[int]]:
    """Split a text into tokens."""
    return Call(
        method="POST",
        path="/tokenize",
        content=encode_body({"prompt": check_text("text", text), "add_special_tokens": False}),
        repeatable=True,
        parse=lambda response: list(response.json()["tokens"]),
    )


def detokenize(tokens: list[int]) -> Call[str]:
    """Join tokens to a text."""
    return Call(
        method="POST",
        path="/detokenize",
        content=encode_body({"tokens": tokens}),
        repeatable=True,
        parse=lambda response: str(response.json()["prompt"]),
    )


def _get(
    path: str, parse: Callable[[Any], T], about: Mapping[str, object] | None = None
) -> Call[T]:
    return Call(
        method="GET",
        path=path,
        about=about or {},
        repeatable=True,
        parse=lambda response: parse(response.json()),
    )


def _path(adaptation_id: str) -> str:
    return f"/v1/adaptations/{encode_segment('adaptation_id', adaptation_id)}"
