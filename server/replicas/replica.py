"""One replica: the application in a process of its own, driven by messages."""

import asyncio
import contextlib
import secrets
from collections.abc import AsyncIterator
from typing import Any

from fastapi import FastAPI
from starlette.types import Message, Scope

from refine_server.server import logs
from refine_server.server.app import create_app
from refine_server.server.process import tune_interpreter
from refine_server.server.settings import Settings

REPLICA_HEADER = b"x-replica"
"""Tells which replica has answered, for who looks for a slow or a broken one."""
LEAVE_SECONDS = 1.0
"""Time that a request has to end by itself after its client left."""
OPEN_POLL_SECONDS = 0.05


class ReplicaBrokenError(RuntimeError):
    """The replica's engine died or hangs, so that only a new process can serve again."""


class Replica:
    """The application, its model, and its share of the requests.

    Ray Serve makes one in each process, and calls its methods on one event loop.

    Args:
        settings: the server's options, as ``Settings.model_dump(mode="json")`` returns them.
    """

    def __init__(self, settings: dict[str, Any]) -> None:
        self._settings = Settings.model_validate(settings)
        logs.configure(self._settings.log_level, self._settings.log_format)
        self._app: FastAPI = create_app(self._settings)
        self._lifespan = contextlib.AsyncExitStack()
        self._name = secrets.token_hex(4).encode()

    async def reconfigure(self, _: dict[str, Any]) -> None:
        """Load the model; Serve calls it after the constructor, before the first request.

        Raises:
            ModelError: the model cannot be loaded.
        """
        await self._lifespan.enter_async_context(self._app.router.lifespan_context(self._app))
        opened = self._app.state.engine.opened
        await asyncio.wrap_future(opened)
        tune_interpreter(opened)
        kept = (self._app.state.adaptations, self._app.state.files, self._app.state.batches)
        while not all(resources.is_open for resources in kept):
            await asyncio.sleep(OPEN_POLL_SECONDS)

    async def respond(self, scope: Scope, body: bytes) -> AsyncIterator[list[Message]]:
        """Serve one request; yield the messages of its response, as many at once as are there."""
        sent: asyncio.Queue[Message | None] = asyncio.Queue()
        left = asyncio.Event()
        requested: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

        async def receive() -> Message:
            if requested:
                return requested.pop()
            await left.wait()
            return {"type": "http.disconnect"}

        async def send(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = [*message["headers"], (REPLICA_HEADER, self._name)]
                message = {**message, "headers": headers}
            sent.put_nowait(message)

        serving = asyncio.create_task(self._app({**scope, "state": {}}, receive, send))
        serving.add_done_callback(lambda _: sent.put_nowait(None))
        try:
            has_ended = False
            while not has_ended:
                messages = [await sent.get()]
                while not sent.empty():
                    messages.append(sent.get_nowait())
                has_ended = messages[-1] is None
                if batch := [message for message in messages if message is not None]:
                    yield batch
            await serving
        finally:
            left.set()
            if not serving.done():
                await asyncio.wait((serving,), timeout=LEAVE_SECONDS)
                serving.cancel()

    def check_health(self) -> None:
        """Have Serve replace this replica once its engine is dead or hangs.

        Raises:
            ReplicaBrokenError: it is.
        """
        if self._app.state.engine.is_broken:
            raise ReplicaBrokenError("the engine is dead or hangs")

    def record_autoscaling_stats(self) -> dict[str, float]:
        """Report the work that waits and runs, for ``scaling.py``."""
        engine = self._app.state.engine
        return {"queued_seconds": engine.load.waiting_seconds, "is_busy": float(engine.is_busy)}

    async def close(self) -> None:
        """End as a server does on SIGTERM: running work ends, and what is ready is kept."""
        await self._lifespan.aclose()
