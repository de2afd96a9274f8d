"""The asynchronous client."""

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
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


class AsyncRefineClient(BaseClient):
    """A client of one server for asyncio, with the methods and errors of ``RefineClient``.

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

        async with AsyncRefineClient("http://127.0.0.1:8000") as client:
            answers = await asyncio.gather(
                *(client.answer(query, document=text) for query in queries)
            )

            async with aclosing(client.stream_answer(query, document=text)) as events:
                async for event in events:
                    if isinstance(event, AnswerDelta):
                        print(event.text, end="")
    """

    def __init__(
        self,
        url: str,
        *,
        api_key: str | None = None,
        read_timeout_seconds: float = READ_TIMEOUT_SECONDS,
        attempts: int = 3,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        super().__init__(url, api_key, read_timeout_seconds, attempts)
        self._http = httpx.AsyncClient(
            base_url=self._base_url,
            headers=self._headers,
            timeout=self._timeout,
            trust_env=self._trust_env,
            # The caller decides how many requests run at a time.
            limits=httpx.Limits(max_connections=None),
            transport=transport,
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close all connections."""
        await self._http.aclose()

    async def answer(self, query: str, **options: Unpack[AnswerOptions]) -> Answer:
        """Answer a question, from a ``document`` or from an ``adaptation`` that was made before."""
        return await self._last(calls.answer(query, options))

    def stream_answer(
        self, query: str, **options: Unpack[AnswerOptions]
    ) -> AsyncGenerator[Event, None]:
        """Answer a question and yield each ``Step`` and ``AnswerDelta``, last the ``Answer``.

        Closing the generator early cancels the work.
        """
        return self._events(calls.answer(query, options))

    async def adapt(
        self, document: str | DocumentFile, **options: Unpack[AdaptationOptions]
    ) -> Adaptation:
        """Begin to adapt to a document and keep the result; return at once.

        The same document, options and seed give the adaptation that exists already.
        """
        return await self._call(calls.adapt(document, options))

    async def estimate(self, query: str, **options: Unpack[AnswerOptions]) -> Estimate:
        """Return what ``answer`` would cost with these arguments; nothing is done."""
        return await self._call(calls.estimate({"query": query, **options}))

    async def estimate_adaptation(
        self, document: str | DocumentFile, **options: Unpack[AdaptationOptions]
    ) -> Estimate:
        """Return what ``adapt`` would cost with these arguments; nothing is done."""
        return await self._call(calls.estimate({"document": document, **options}))

    async def adaptations(self) -> list[Adaptation]:
        """Return the adaptations of this API key, the newest first."""
        return await self._call(calls.adaptations())

    async def adaptation(self, adaptation_id: str) -> Adaptation:
        """Return the present state of an adaptation."""
        return await self._call(calls.adaptation(adaptation_id))

    async def change_adaptation(
        self, adaptation_id: str, **changes: Unpack[AdaptationChanges]
    ) -> Adaptation:
        """Name an adaptation, or pin it so that it is kept until it is deleted."""
        return await self._call(calls.change_adaptation(adaptation_id, changes))

    async def delete_adaptation(self, adaptation_id: str) -> None:
        """Delete an adaptation. One that still runs is cancelled at its next step."""
        await self._call(calls.delete_adaptation(adaptation_id))

    def follow_adaptation(self, adaptation_id: str) -> AsyncGenerator[Event | Adaptation, None]:
        """Yield every ``Step`` of an adaptation from the first, then the ended ``Adaptation``."""
        return self._events(calls.adaptation_events(adaptation_id))

    async def wait_for_adaptation(self, adaptation_id: str) -> Adaptation:
        """Wait until an adaptation is ready.

        Raises:
            AdaptationFailedError: it failed or was cancelled.
        """
        return errors.ready(await self._last(calls.adaptation_events(adaptation_id)))

    async def upload_document(self, data: bytes, filename: str) -> Document:
        """Have the server read a txt, md, html, docx or pdf file, and keep its text.

        ``{"file_id": document.id}`` is then a document of any request.
        """
        return await self._call(calls.upload_document(data, filename))

    async def document(self, file_id: str) -> Document:
        """Return the text of a document that was uploaded, with its pages."""
        return await self._call(calls.document(file_id))

    async def models(self) -> list[Model]:
        """Return the models that the server answers with."""
        return await self._call(calls.models())

    async def version(self) -> Version:
        """Return the version of the server's software."""
        return await self._call(calls.version())

    async def adapt_defaults(
        self, on: Literal["document", "spans", "query_spans", "prompt", "evidence"] = "document"
    ) -> dict[str, Any]:
        """Return the server's default for each option of ``adapt``, with ``on`` of one kind."""
        return await self._call(calls.adapt_defaults(on))

    async def metrics(self) -> str:
        """Return the server's metrics in Prometheus' text format."""
        return await self._call(calls.metrics())

    async def tokenize(self, text: str) -> list[int]:
        """Return the token ids of a text, without special tokens."""
        return await self._call(calls.tokenize(text))

    async def detokenize(self, tokens: list[int]) -> str:
        """Return the text of token ids."""
        return await self._call(calls.detokenize(tokens))

    async def is_ready(self) -> bool:
        """Return whether the server runs and takes requests."""
        try:
            response = await self._http.get("/health/ready", timeout=CONNECT_SECONDS)
            return response.is_success
        except httpx.HTTPError:
            return False

    async def wait_until_ready(self, poll_seconds: float = 0.2) -> AsyncIterator[float]:
        """Poll until the server takes requests; yield the seconds waited so far at each poll."""
        began = time.monotonic()
        while not await self.is_ready():
            yield time.monotonic() - began
            await asyncio.sleep(poll_seconds)

    async def _call(self, call: Call[T]) -> T:
        async with self._response(call) as response:
            return call.parse(response)

    async def _events(self, stream: Stream[E, L]) -> AsyncGenerator[E, None]:
        async with self._response(stream) as response:
            decoder = EventDecoder(stream, response)
            async for chunk in response.aiter_bytes():
                for event in decoder.feed(chunk):
                    yield event
                if decoder.has_ended:
                    return
            decoder.check_end()

    async def _last(self, stream: Stream[E, L]) -> L:
        *_, last = [event async for event in self._events(stream)]
        assert isinstance(last, stream.last)
        return last

    @asynccontextmanager
    async def _response(self, request: Request) -> AsyncIterator[httpx.Response]:
        """Send a request; the response is a success, and open as long as the context."""
        with self._translated_errors():
            response = await self._send(request)
            try:
                yield response
            finally:
                await response.aclose()

    async def _send(self, request: Request) -> httpx.Response:
        http_request = self._build(self._http, request)
        attempt = 0
        while True:
            attempt += 1
            try:
                response = await self._http.send(http_request, stream=request.is_streamed)
                if response.is_success:
                    return response
                await response.aread()
                raise errors.from_response(response)
            except (httpx.HTTPError, ResponseError) as error:
                pause = self._retries.pause(request, attempt, error)
                if pause is None:
                    raise
            await asyncio.sleep(pause)
