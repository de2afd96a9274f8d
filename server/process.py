"""The server as a process: uvicorn, signals, shutdown and the exit status."""

import asyncio
import gc
import ipaddress
import logging
import os
import signal
import socket
import sys
import threading
from concurrent.futures import Future
from types import FrameType

import uvicorn
from fastapi import FastAPI
from typing_extensions import override

from refine_server.server import logs
from refine_server.server.access.keys import Keyring
from refine_server.server.app import create_app
from refine_server.server.engine.backend.protocol import Backend
from refine_server.server.engine.engine import Engine
from refine_server.server.http.connections import MAX_HEAD_BYTES, http_protocol
from refine_server.server.settings import Settings

logger = logging.getLogger(__name__)

POLL_SECONDS = 0.05
EXIT_SECONDS = 30.0
"""Time for a shutdown beside that of the running requests, before the process is ended by force."""
SWITCH_SECONDS = 1e-3
"""Longest time that a thread holds the interpreter while another waits for it. With Python's
default, 5 ms, the two halves of a batch of tiny's steps take 6 % longer."""
ENGINE_BROKEN = 1
"""Exit status after which a supervisor should start a new process."""


class StartError(RuntimeError):
    """The server cannot start; the message says why."""


class Server(uvicorn.Server):
    """A uvicorn server that shuts down together with its engine.

    After SIGTERM it keeps listening until the engine's jobs have ended, so that new requests get a
    503 instead of a refused connection; then it closes its connections. If the engine is dead or
    hangs, it answers all requests with an error and shuts down; ``is_broken`` is then true.
    """

    def __init__(self, app: FastAPI, settings: Settings) -> None:
        config = uvicorn.Config(
            app,
            http=http_protocol(settings.client_timeout_seconds),
            h11_max_incomplete_event_size=MAX_HEAD_BYTES,
            log_config=None,
            access_log=False,  # RequestContext logs a line with the request's id
            server_header=False,
            proxy_headers=bool(settings.proxies),
            forwarded_allow_ips=settings.proxies,
            # Connections that are left then are cut; by then the engine has ended every job.
            timeout_graceful_shutdown=int(settings.shutdown_seconds) + 5,
        )
        super().__init__(config)
        self.engine: Engine = app.state.engine
        self.shutdown_seconds = settings.shutdown_seconds
        self.is_broken = False

    @override
    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        # Uvicorn's own handler raises the signal again at the end; the status would not be 0.
        if sig == signal.SIGTERM:
            self.should_exit = True
        else:
            super().handle_exit(sig, frame)

    @override
    async def on_tick(self, counter: int) -> bool:
        self.is_broken = self.is_broken or self.engine.is_broken
        return self.is_broken or await super().on_tick(counter)

    @override
    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        # Work, connections and the store have time limits; the watchdog is for one that fails.
        limit = EXIT_SECONDS + (0.0 if self.is_broken else 2 * self.shutdown_seconds)
        watchdog = threading.Timer(limit, os._exit, [ENGINE_BROKEN])
        watchdog.daemon = True
        watchdog.start()
        try:
            if self.is_broken:
                self.engine.abandon()
            else:
                self.engine.drain(self.shutdown_seconds)
                await self._wait_until_idle()
            await super().shutdown(sockets)
        finally:
            watchdog.cancel()

    async def _wait_until_idle(self) -> None:
        loop = asyncio.get_running_loop()
        end = loop.time() + self.shutdown_seconds
        while self.engine.is_busy and not self.force_exit and loop.time() < end:
            await asyncio.sleep(POLL_SECONDS)


def serve(settings: Settings) -> None:
    """Serve until a signal arrives.

    Ends the process with status 1 if the engine dies or hangs.

    Raises:
        StartError: the address is in use, or the model cannot be loaded.
        SettingsError: the API keys are invalid, or the store cannot be used.
    """
    logs.configure(settings.log_level, settings.log_format)
    listener = listen(settings.host, settings.port)
    app = create_app(settings)
    server = Server(app, settings)
    engine = server.engine

    def stop_if_failed(opened: "Future[Backend]") -> None:
        if opened.exception() is not None:
            server.should_exit = True

    engine.opened.add_done_callback(stop_if_failed)
    engine.opened.add_done_callback(tune_interpreter)
    warn_if_unprotected(app.state.keyring, settings.host)
    host, port = listener.getsockname()[:2]
    logger.info("listening on http://%s:%s, loading %s", host, port, settings.model)
    server.run(sockets=[listener])
    is_broken = server.is_broken or engine.is_broken
    if is_broken:
        logger.critical("the engine is dead or hangs: the process ends and must be started again")
    if is_broken or engine.is_alive:
        logging.shutdown()
        os._exit(ENGINE_BROKEN if is_broken else 0)  # a hung thread would keep the process alive
    if engine.opened.done() and (failure := engine.opened.exception()) is not None:
        raise StartError(f"cannot serve {settings.model}: {failure}")


def listen(host: str, port: int) -> socket.socket:
    """Bind an address; done before anything is loaded, so that a port in use is reported at once.

    Raises:
        StartError: the address cannot be bound.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listener = socket.create_server((host, port), family=family)
    except OSError as error:
        raise StartError(f"cannot listen on {host}:{port}: {error.strerror or error}") from None
    # Connections inherit the option. Without it, the end of an answer waits 40 ms for the client's
    # acknowledgement of its beginning; asyncio sets it only on sockets that it creates itself.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener


def tune_interpreter(opened: "Future[Backend]") -> None:
    """Tune Python for serving; called once the model is loaded.

    Loaded objects live as long as the process, so they are excluded from garbage collection: a full
    collection that visits them stops all threads for about 30 ms. A shorter switch interval lets
    two threads that compute parts of a batch alternate sooner.
    """
    gc.collect()
    gc.freeze()
    sys.setswitchinterval(SWITCH_SECONDS)


def warn_if_unprotected(keyring: Keyring, host: str) -> None:
    """Warn if everybody who reaches an address may use the server."""
    try:
        is_loopback = ipaddress.ip_address(host).is_loopback
    except ValueError:
        is_loopback = host == "localhost"
    if keyring.is_open and not is_loopback:
        logger.warning(
            "there are no API keys and %s is not a loopback address: everybody who can reach this "
            "server may use it; set --api-keys-file to require keys",
            host,
        )
