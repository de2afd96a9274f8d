"""The asynchronous client: ``RefineClient``'s methods, awaited."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
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


class AsyncRefineClient:
    """Asks one server. Arguments, methods and errors are those of ``RefineClient``."""

    def __init__(
        self,
        url: str,
        *,
        api_key: str | None = None,
        silence_seconds: float = calls.SILENCE_SECONDS,
        attempts: int = 3,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self.url = url
        self._retries = Retries(attempts)
        options = calls.http_options(url, api_key, silence_seconds)
        # How many requests run at a time is the caller's choice, not the pool's.
        limits = httpx.Limits(max_connections=None)
        with self._errors():
            self._http = httpx.AsyncClient(**options, limits=limits, transport=transport)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close all connections."""
        await self._http.aclose()

    async def answer(self, query: str, **options: Unpack[AnswerOptions]) -> Answer:
        """Answer a question from a ``document``, or from an ``adaptation`` made before."""
        async for event in self.stream_answer(query, **options):
            if isinstance(event, Answer):
                return event
        raise AssertionError("a stream ends with its answer or raises")

    async def stream_answer(
        self, query: str, **options: Unpack[AnswerOptions]
    ) -> AsyncIterator[Event]:
        """The same as it happens: ``Step``, ``AnswerDelta``, …, and last the ``Answer``."""
        parser = sse.Parser()
        async with self._sent(calls.answer(query, options), stream=True) as reply:
            async for chunk in reply.aiter_bytes():
                for told in parser.feed(chunk):
                    data = json.loads(told.data)
                    if told.event == "error":
                        raise errors.failure(data, reply)
                    event = event_of(told.event, data)
                    yield event
                    if isinstance(event, Answer):
                        return
            raise ProtocolError("the server ended the stream without an answer")

    async def adapt(self, document: str, **options: Unpack[AdaptationOptions]) -> Adaptation:
        """Adapt to a document and keep it: returns at once, with the id to ask and to wait for.

        The same document, options and seed join the adaptation that is there already.
        """
        return await self._json(calls.adapt(document, options), Adaptation.model_validate)

    async def adaptations(self) -> list[Adaptation]:
        """One's own adaptations, the newest first."""
        return await self._json(calls.read("/v1/adaptations"), types.adaptations_of)

    async def adaptation(self, adaptation_id: str) -> Adaptation:
        """How an adaptation is doing."""
        return await self._json(calls.adaptation(adaptation_id), Adaptation.model_validate)

    async def delete_adaptation(self, adaptation_id: str) -> None:
        """Forget an adaptation; one that runs is cancelled at its next step."""
        await self._json(calls.forget(adaptation_id), lambda _: None)

    async def follow_adaptation(self, adaptation_id: str) -> AsyncIterator[Event | Adaptation]:
        """Every ``Step`` from the first on, then the ``Adaptation`` as it ended."""
        call = calls.adaptation(adaptation_id, "/events")
        parser = sse.Parser()
        async with self._sent(call, stream=True) as reply:
            async for chunk in reply.aiter_bytes():
                for told in parser.feed(chunk):
                    data = json.loads(told.data)
                    if told.event in types.ENDINGS:
                        yield Adaptation.model_validate(data)
                        return
                    yield event_of(told.event, data)
            raise ProtocolError("the server ended the stream before the adaptation ended")

    async def wait_for_adaptation(self, adaptation_id: str) -> Adaptation:
        """The adaptation once it is ready.

        Raises:
            AdaptationFailedError: it failed or was cancelled.
        """
        async for event in self.follow_adaptation(adaptation_id):
            if isinstance(event, Adaptation):
                return errors.ready(event)
        raise AssertionError("a stream ends with the adaptation or raises")

    async def models(self) -> list[Model]:
        """The models that can be asked."""
        return await self._json(calls.read("/v1/models"), types.models_of)

    async def version(self) -> Version:
        """Which software answers."""
        return await self._json(calls.read("/version"), Version.model_validate)

    async def adapt_defaults(self) -> dict[str, Any]:
        """What the server takes for each option of ``adapt`` that a request leaves out."""
        return await self._json(calls.read("/openapi.json"), types.adapt_defaults_of)

    async def metrics(self) -> str:
        """The server's Prometheus metrics."""
        async with self._sent(calls.read("/metrics")) as reply:
            return reply.text

    async def tokenize(self, text: str) -> list[int]:
        """A text's tokens, without special ones."""
        return await self._json(calls.tokenize(text), lambda said: list(said["tokens"]))

    async def detokenize(self, tokens: list[int]) -> str:
        """The text of tokens."""
        return await self._json(calls.detokenize(tokens), lambda said: str(said["prompt"]))

    async def is_ready(self) -> bool:
        """Whether the server is there and takes requests."""
        try:
            reply = await self._http.get("/health/ready", timeout=calls.CONNECT_SECONDS)
            return reply.is_success
        except httpx.HTTPError:
            return False

    async def wait_until_ready(self, poll_seconds: float = 0.2) -> AsyncIterator[float]:
        """Poll until the server takes requests; yields the seconds waited so far at each poll."""
        began = time.monotonic()
        while not await self.is_ready():
            yield time.monotonic() - began
            await asyncio.sleep(poll_seconds)

    async def _json(self, call: Call, parse: Callable[[Any], T]) -> T:
        async with self._sent(call) as reply:
            return parse(reply.json())

    @asynccontextmanager
    async def _sent(self, call: Call, stream: bool = False) -> AsyncIterator[httpx.Response]:
        """A good response to a call, open as long as the context is."""
        with self._errors():
            request = self._http.build_request(call.method, call.path, json=call.json)
            reply = await self._send(call, request, stream)
            try:
                yield reply
            finally:
                await reply.aclose()

    async def _send(self, call: Call, request: httpx.Request, stream: bool) -> httpx.Response:
        for tried in range(1, self._retries.attempts + 1):
            try:
                reply = await self._http.send(request, stream=stream)
                if reply.is_success:
                    return reply
                await reply.aread()
                raise Refused(errors.refusal(reply), reply)
            except (httpx.HTTPError, Refused) as error:
                pause = self._retries.pause(call, tried, error)
                if pause is None:
                    raise
            await asyncio.sleep(pause)
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
