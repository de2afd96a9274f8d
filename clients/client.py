"""The synchronous client."""

import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from typing import Any, Literal, Self, TypeVar, Unpack

import httpx

from refine_server.clients import calls, errors
from refine_server.clients.base_client import (
    CONNECT_SECONDS,
    READ_TIMEOUT_SECONDS,
    BaseClient,
    EventDecoder,
)
from refine_server.clients.calls import Call, Request, Stream
from refine_server.clients.errors import ResponseError
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


class RefineClient(BaseClient):
    """A client of one server. Threads may share it.

    Every method raises a ``ClientError`` of its own type when it has no result.

    Args:
        url: the address of the server.
        api_key: the key that is sent as a bearer token; by default the environment variable
            ``REFINE_API_KEY``, if it is set.
        read_timeout_seconds: how long the server may send nothing. While a stream is open, it
            sends something every 2 seconds, however long an adaptation takes.
        attempts: how often a request is sent at most. A request that may have begun an
            adaptation is never sent again.
        transport: a transport of httpx, for tests.

    Example::

        with RefineClient("http://127.0.0.1:8000") as client:
            answer = client.answer("Who is the harbour master?", document=text)
            print(answer.answer, answer.timings.adapt_seconds)

            adaptation = client.wait_for_adaptation(client.adapt(text).id)
            for query in queries:
                print(client.answer(query, adaptation=adaptation.id).answer)
    """

    def __init__(
        self,
        url: str,
        *,
        api_key: str | None = None,
        read_timeout_seconds: float = READ_TIMEOUT_SECONDS,
        attempts: int = 3,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        super().__init__(url, api_key, read_timeout_seconds, attempts)
        self._http = httpx.Client(
            base_url=self._base_url,
            headers=self._headers,
            timeout=self._timeout,
            trust_env=self._trust_env,
            transport=transport,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close all connections."""
        self._http.close()

    def answer(self, query: str, **options: Unpack[AnswerOptions]) -> Answer:
        """Answer a question, from a ``document`` or from an ``adaptation`` that was made before."""
        return self._last(calls.answer(query, options))

    def stream_answer(
        self, query: str, **options: Unpack[AnswerOptions]
    ) -> Generator[Event, None, None]:
        """Answer a question and yield each ``Step`` and ``AnswerDelta``, last the ``Answer``.

        Closing the generator early cancels the work.
        """
        return self._events(calls.answer(query, options))

    def adapt(
        self, document: str | DocumentFile, **options: Unpack[AdaptationOptions]
    ) -> Adaptation:
        """Begin to adapt to a document and keep the result; return at once.

        The same document, options and seed give the adaptation that exists already.
        """
        return self._call(calls.adapt(document, options))

    def estimate(self, query: str, **options: Unpack[AnswerOptions]) -> Estimate:
        """Return what ``answer`` would cost with these arguments; nothing is done."""
        return self._call(calls.estimate({"query": query, **options}))

    def estimate_adaptation(
        self, document: str | DocumentFile, **options: Unpack[AdaptationOptions]
    ) -> Estimate:
        """Return what ``adapt`` would cost with these arguments; nothing is done."""
        return self._call(calls.estimate({"document": document, **options}))

    def adaptations(self) -> list[Adaptation]:
        """Return the adaptations of this API key, the newest first."""
        return self._call(calls.adaptations())

    def adaptation(self, adaptation_id: str) -> Adaptation:
        """Return the present state of an adaptation."""
        return self._call(calls.adaptation(adaptation_id))

    def change_adaptation(
        self, adaptation_id: str, **changes: Unpack[AdaptationChanges]
    ) -> Adaptation:
        """Name an adaptation, or pin it so that it is kept until it is deleted."""
        return self._call(calls.change_adaptation(adaptation_id, changes))

    def delete_adaptation(self, adaptation_id: str) -> None:
        """Delete an adaptation. One that still runs is cancelled at its next step."""
        self._call(calls.delete_adaptation(adaptation_id))

    def follow_adaptation(self, adaptation_id: str) -> Generator[Event | Adaptation, None, None]:
        """Yield every ``Step`` of an adaptation from the first, then the ended ``Adaptation``."""
        return self._events(calls.adaptation_events(adaptation_id))

    def wait_for_adaptation(self, adaptation_id: str) -> Adaptation:
        """Wait until an adaptation is ready.

        Raises:
            AdaptationFailedError: it failed or was cancelled.
        """
        return errors.ready(self._last(calls.adaptation_events(adaptation_id)))

    def upload_document(self, data: bytes, filename: str) -> Document:
        """Have the server read a txt, md, html, docx or pdf file, and keep its text.

        ``{"file_id": document.id}`` is then a document of any request.
        """
        return self._call(calls.upload_document(data, filename))

    def document(self, file_id: str) -> Document:
        """Return the text of a document that was uploaded, with its pages."""
        return self._call(calls.document(file_id))

    def models(self) -> list[Model]:
        """Return the models that the server answers with."""
        return self._call(calls.models())

    def version(self) -> Version:
        """Return the version of the server's software."""
        return self._call(calls.version())

    def adapt_defaults(
        self, on: Literal["document", "spans", "query_spans", "prompt", "evidence"] = "document"
    ) -> dict[str, Any]:
        """Return the server's default for each option of ``adapt``, with ``on`` of one kind."""
        return self._call(calls.adapt_defaults(on))

    def metrics(self) -> str:
        """Return the server's metrics in Prometheus' text format."""
        return self._call(calls.metrics())

    def tokenize(self, text: str) -> list[int]:
        """Return the token ids of a text, without special tokens."""
        return self._call(calls.tokenize(text))

    def detokenize(self, tokens: list[int]) -> str:
        """Return the text of token ids."""
        return self._call(calls.detokenize(tokens))

    def is_ready(self) -> bool:
        """Return whether the server runs and takes requests."""
        try:
            return self._http.get("/health/ready", timeout=CONNECT_SECONDS).is_success
        except httpx.HTTPError:
            return False

    def wait_until_ready(self, poll_seconds: float = 0.2) -> Iterator[float]:
        """Poll until the server takes requests; yield the seconds waited so far at each poll."""
        began = time.monotonic()
        while not self.is_ready():
            yield time.monotonic() - began
            time.sleep(poll_seconds)

    def _call(self, call: Call[T]) -> T:
        with self._response(call) as response:
            return call.parse(response)

    def _events(self, stream: Stream[E, L]) -> Generator[E, None, None]:
        with self._response(stream) as response:
            decoder = EventDecoder(stream, response)
            for chunk in response.iter_bytes():
                yield from decoder.feed(chunk)
                if decoder.has_ended:
                    return
            decoder.check_end()

    def _last(self, stream: Stream[E, L]) -> L:
        *_, last = self._events(stream)
        assert isinstance(last, stream.last)
        return last

    @contextmanager
    def _response(self, request: Request) -> Iterator[httpx.Response]:
        """Send a request; the response is a success, and open as long as the context."""
        with self._translated_errors():
            response = self._send(request)
            try:
                yield response
            finally:
                response.close()

    def _send(self, request: Request) -> httpx.Response:
        http_request = self._build(self._http, request)
        attempt = 0
        while True:
            attempt += 1
            try:
                response = self._http.send(http_request, stream=request.is_streamed)
                if response.is_success:
                    return response
                response.read()
                raise errors.from_response(response)
            except (httpx.HTTPError, ResponseError) as error:
                pause = self._retries.pause(request, attempt, error)
                if pause is None:
                    raise
            time.sleep(pause)
