"""The synchronous client."""

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Self, TypeVar, Unpack

import httpx

from refine_server.clients import calls, errors, sse, types
from refine_server.clients.calls import Call, Refused, Retries
from refine_server.clients.errors import ClientError, ProtocolError
from refine_server.clients.types import (
    Adaptation,
    AdaptationOptions,
    Answer,
    AnswerOptions,
    Event,
    Model,
    Version,
    event_of,
)

T = TypeVar("T")


class RefineClient:
    """Asks one server; safe to share between threads. Close it, or use it in a ``with``.

    Args:
        url: of the server, such as ``http://127.0.0.1:8000``.
        api_key: sent as a bearer token; by default what ``REFINE_API_KEY`` says, if anything.
        silence_seconds: how long the server may say nothing. An open stream says something every
            15 seconds, however long an adaptation takes.
        attempts: how often a request is sent at most. What may have begun an adaptation is never
            sent again: see ``Retries``.
        transport: of httpx, such as one for a test.

    Every method raises a ``ClientError`` of the fitting type when it brings no answer.
    """

    def __init__(
        self,
        url: str,
        *,
        api_key: str | None = None,
        silence_seconds: float = calls.SILENCE_SECONDS,
        attempts: int = 3,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self.url = url
        self._retries = Retries(attempts)
        options = calls.http_options(url, api_key, silence_seconds)
        with self._errors():
            self._http = httpx.Client(**options, transport=transport)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close all connections."""
        self._http.close()

    def answer(self, query: str, **options: Unpack[AnswerOptions]) -> Answer:
        """Answer a question from a ``document``, or from an ``adaptation`` made before."""
        for event in self.stream_answer(query, **options):
            if isinstance(event, Answer):
                return event
        raise AssertionError("a stream ends with its answer or raises")

    def stream_answer(self, query: str, **options: Unpack[AnswerOptions]) -> Iterator[Event]:
        """The same as it happens: ``Step``, ``AnswerDelta``, …, and last the ``Answer``.

        Closing the iterator early cancels the work.
        """
        with self._sent(calls.answer(query, options), stream=True) as reply:
            for told in sse.parse(reply.iter_bytes()):
                data = json.loads(told.data)
                if told.event == "error":
                    raise errors.failure(data, reply)
                event = event_of(told.event, data)
                yield event
                if isinstance(event, Answer):
                    return
            raise ProtocolError("the server ended the stream without an answer")

    def adapt(self, document: str, **options: Unpack[AdaptationOptions]) -> Adaptation:
        """Adapt to a document and keep it: returns at once, with the id to ask and to wait for.

        The same document, options and seed join the adaptation that is there already.
        """
        return self._json(calls.adapt(document, options), Adaptation.model_validate)

    def adaptations(self) -> list[Adaptation]:
        """One's own adaptations, the newest first."""
        return self._json(calls.read("/v1/adaptations"), types.adaptations_of)

    def adaptation(self, adaptation_id: str) -> Adaptation:
        """How an adaptation is doing."""
        return self._json(calls.adaptation(adaptation_id), Adaptation.model_validate)

    def delete_adaptation(self, adaptation_id: str) -> None:
        """Forget an adaptation; one that runs is cancelled at its next step."""
        self._json(calls.forget(adaptation_id), lambda _: None)

    def follow_adaptation(self, adaptation_id: str) -> Iterator[Event | Adaptation]:
        """Every ``Step`` from the first on, then the ``Adaptation`` as it ended."""
        call = calls.adaptation(adaptation_id, "/events")
        with self._sent(call, stream=True) as reply:
            for told in sse.parse(reply.iter_bytes()):
                data = json.loads(told.data)
                if told.event in types.ENDINGS:
                    yield Adaptation.model_validate(data)
                    return
                yield event_of(told.event, data)
            raise ProtocolError("the server ended the stream before the adaptation ended")

    def wait_for_adaptation(self, adaptation_id: str) -> Adaptation:
        """The adaptation once it is ready.

        Raises:
            AdaptationFailedError: it failed or was cancelled.
        """
        for event in self.follow_adaptation(adaptation_id):
            if isinstance(event, Adaptation):
                return errors.ready(event)
        raise AssertionError("a stream ends with the adaptation or raises")

    def models(self) -> list[Model]:
        """The models that can be asked."""
        return self._json(calls.read("/v1/models"), types.models_of)

    def version(self) -> Version:
        """Which software answers."""
        return self._json(calls.read("/version"), Version.model_validate)

    def adapt_defaults(self) -> dict[str, Any]:
        """What the server takes for each option of ``adapt`` that a request leaves out."""
        return self._json(calls.read("/openapi.json"), types.adapt_defaults_of)

    def metrics(self) -> str:
        """The server's Prometheus metrics."""
        with self._sent(calls.read("/metrics")) as reply:
            return reply.text

    def tokenize(self, text: str) -> list[int]:
        """A text's tokens, without special ones."""
        return self._json(calls.tokenize(text), lambda said: list(said["tokens"]))

    def detokenize(self, tokens: list[int]) -> str:
        """The text of tokens."""
        return self._json(calls.detokenize(tokens), lambda said: str(said["prompt"]))

    def is_ready(self) -> bool:
        """Whether the server is there and takes requests."""
        try:
            return self._http.get("/health/ready", timeout=calls.CONNECT_SECONDS).is_success
        except httpx.HTTPError:
            return False

    def wait_until_ready(self, poll_seconds: float = 0.2) -> Iterator[float]:
        """Poll until the server takes requests; yields the seconds waited so far at each poll."""
        began = time.monotonic()
        while not self.is_ready():
            yield time.monotonic() - began
            time.sleep(poll_seconds)

    def _json(self, call: Call, parse: Callable[[Any], T]) -> T:
        with self._sent(call) as reply:
            return parse(reply.json())

    @contextmanager
    def _sent(self, call: Call, stream: bool = False) -> Iterator[httpx.Response]:
        """A good response to a call, open as long as the context is."""
        with self._errors():
            request = self._http.build_request(call.method, call.path, json=call.json)
            reply = self._send(call, request, stream)
            try:
                yield reply
            finally:
                reply.close()

    def _send(self, call: Call, request: httpx.Request, stream: bool) -> httpx.Response:
        for tried in range(1, self._retries.attempts + 1):
            try:
                reply = self._http.send(request, stream=stream)
                if reply.is_success:
                    return reply
                reply.read()
                raise Refused(errors.refusal(reply), reply)
            except (httpx.HTTPError, Refused) as error:
                pause = self._retries.pause(call, tried, error)
                if pause is None:
                    raise
            time.sleep(pause)
        raise AssertionError("the last try returns or raises")

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except ClientError:
            raise
        except Refused as refused:
            raise refused.error from None
        except (httpx.HTTPError, httpx.InvalidURL, ValueError, KeyError, TypeError) as error:
            raise errors.broken(self.url, error) from None
