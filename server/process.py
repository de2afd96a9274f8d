"""``refine-server serve``: the app under uvicorn."""

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

from refine_server.server.access.keys import Keyring
from refine_server.server.app import create_app
from refine_server.server.engine.backend import Backend
from refine_server.server.engine.engine import Engine
from refine_server.server.http.connections import MAX_HEAD_BYTES, head_timeout_protocol
from refine_server.server.settings import Settings

logger = logging.getLogger(__name__)

LOG_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
POLL_SECONDS = 0.05
EXIT_SECONDS = 30.0
SWITCH_SECONDS = 1e-3
"""Longest time that a thread holds the interpreter while another waits for it. With Python's own,
5 ms, the two parts of a batch of tiny's steps take 6 % longer."""
BROKEN = 1
"""Exit status that makes a supervisor start a new process."""


class StartError(RuntimeError):
    """The server could not start; the message says why."""


class Server(uvicorn.Server):
    """Uvicorn that ends with its engine, and in good order.

    After SIGTERM it listens on until the engine's jobs have ended, so that whoever comes meanwhile
    is told to try elsewhere, then closes its connections and exits with 0. When the engine is dead
    or hangs it tells the clients so and ends: ``is_broken``.
    """

    def __init__(self, app: FastAPI, settings: Settings) -> None:
        config = uvicorn.Config(
            app,
            http=head_timeout_protocol(settings.client_timeout_seconds),
            h11_max_incomplete_event_size=MAX_HEAD_BYTES,
            log_config=None,
            access_log=False,  # RequestContext writes a line with the request's id
            server_header=False,
            # Past this, what is left is cut: the engine has told every job to end by then.
            timeout_graceful_shutdown=int(settings.shutdown_seconds) + 5,
        )
        super().__init__(config)
        self.engine: Engine = app.state.engine
        self.shutdown_seconds = settings.shutdown_seconds
        self.is_broken = False

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        # Uvicorn would raise the signal again at the end, and the exit status would not be 0.
        if sig == signal.SIGTERM:
            self.should_exit = True
        else:
            super().handle_exit(sig, frame)

    async def on_tick(self, counter: int) -> bool:
        self.is_broken = self.is_broken or self.engine.is_broken
        return self.is_broken or await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        # Work, connections and the store each have a time limit; this is for one that fails.
        longest = EXIT_SECONDS + (0.0 if self.is_broken else 2 * self.shutdown_seconds)
        last = threading.Timer(longest, os._exit, [BROKEN])
        last.daemon = True
        last.start()
        try:
            if self.is_broken:
                self.engine.abandon()
            else:
                self.engine.drain(self.shutdown_seconds)
                await self._until_idle()
            await super().shutdown(sockets)
        finally:
            last.cancel()

    async def _until_idle(self) -> None:
        loop = asyncio.get_running_loop()
        end = loop.time() + self.shutdown_seconds
        while self.engine.is_busy and not self.force_exit and loop.time() < end:
            await asyncio.sleep(POLL_SECONDS)


def serve(settings: Settings) -> None:
    """Serve until a signal comes.

    Ends the process with status 1 when the engine has died or hangs.

    Raises:
        StartError: the address is taken, or the model cannot be loaded.
        SettingsError: the API keys are not as they should be.
    """
    logging.basicConfig(level=settings.log_level.upper(), format=LOG_FORMAT, stream=sys.stderr)
    logging.getLogger("httpx").setLevel(logging.WARNING)
    listener = listen(settings.host, settings.port)
    app = create_app(settings)
    server = Server(app, settings)
    engine = server.engine

    def stop_when_failed(opened: "Future[Backend]") -> None:
        if opened.exception() is not None:
            server.should_exit = True

    engine.opened.add_done_callback(stop_when_failed)
    engine.opened.add_done_callback(settle)
    _warn_when_open(app.state.keyring, settings.host)
    host, port = listener.getsockname()[:2]
    logger.info("listening on http://%s:%s, loading %s", host, port, settings.model)
    server.run(sockets=[listener])
    is_broken = server.is_broken or engine.is_broken
    if is_broken:
        logger.critical("the engine is dead or hangs: this process ends, for a new one to start")
    if is_broken or engine.is_alive:
        logging.shutdown()
        os._exit(BROKEN if is_broken else 0)  # a thread that hangs would keep the process
    if engine.opened.done() and (failure := engine.opened.exception()) is not None:
        raise StartError(f"cannot serve {settings.model}: {failure}")


def listen(host: str, port: int) -> socket.socket:
    """Bind before anything is loaded, so that a taken port is known at once.

    Raises:
        StartError: the address cannot be had.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listener = socket.create_server((host, port), family=family)
    except OSError as error:
        raise StartError(f"cannot listen on {host}:{port}: {error.strerror or error}") from None
    # Connections inherit it. Without, the end of an answer waits 40 ms for the client's
    # acknowledgement of its beginning: asyncio sees to it only on sockets that it makes itself.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener


def settle(opened: "Future[Backend]") -> None:
    """Make Python ready to serve, once the model is loaded.

    What has been loaded stays, so it is taken out of the garbage collector's sight: a full
    collection that visits it stops all threads for some 30 ms. And two threads that step on parts
    of a batch take turns at the interpreter sooner.
    """
    gc.collect()
    gc.freeze()
    sys.setswitchinterval(SWITCH_SECONDS)


def _warn_when_open(keyring: Keyring, host: str) -> None:
    try:
        is_loopback = ipaddress.ip_address(host).is_loopback
    except ValueError:
        is_loopback = host == "localhost"
    if keyring.is_open and not is_loopback:
        logger.warning(
            "there are no API keys and %s is no loopback address: whoever reaches this server may "
            "use it; see --api-keys-file",
            host,
        )
