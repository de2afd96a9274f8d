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
from pathlib import Path
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
from refine_server.server.settings import Settings, SettingsError

logger = logging.getLogger(__name__)

POLL_SECONDS = 0.05
BACKLOG = 2048
"""Connections that may wait to be accepted."""
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
        self._app, self._settings = app, settings
        self._keys_have_changed = False
        self.shutdown_seconds = settings.shutdown_seconds
        self.is_broken = False

    @override
    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        # Uvicorn's own handler raises the signal again at the end; the status would not be 0.
        if sig == signal.SIGTERM:
            self.should_exit = True
        else:
            super().handle_exit(sig, frame)

    def handle_reload(self, sig: int, frame: FrameType | None) -> None:
        """Handle SIGHUP: the API keys and their quotas are read again, at the next tick."""
        self._keys_have_changed = True

    def _reload_keys(self) -> None:
        """Read the API keys again; keep those that there are if the new ones are invalid."""
        self._keys_have_changed = False
        keyring: Keyring = self._app.state.keyring
        try:
            keyring.replace(Keyring.read_entries(self._settings))
        except SettingsError as error:
            logger.error("the API keys stay as they were: %s", error)
            return
        self._app.state.quotas.refresh()
        logger.info("read the API keys again: %d names", len(keyring.principals))

    @override
    async def on_tick(self, counter: int) -> bool:
        if self._keys_have_changed:
            self._reload_keys()
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
    listener = open_listener(settings)
    app = create_app(settings)
    server = Server(app, settings)
    signal.signal(signal.SIGHUP, server.handle_reload)
    engine = server.engine

    def stop_if_failed(opened: "Future[Backend]") -> None:
        if opened.exception() is not None:
            server.should_exit = True

    engine.opened.add_done_callback(stop_if_failed)
    engine.opened.add_done_callback(tune_interpreter)
    if settings.unix_socket is None:
        warn_if_unprotected(app.state.keyring, settings.host)
    logger.info("listening on %s, loading %s", _address(listener), settings.model)
    server.run(sockets=[listener])
    if settings.unix_socket is not None:
        settings.unix_socket.unlink(missing_ok=True)
    is_broken = server.is_broken or engine.is_broken
    if is_broken:
        logger.critical("the engine is dead or hangs: the process ends and must be started again")
    if is_broken or engine.is_alive:
        logging.shutdown()
        os._exit(ENGINE_BROKEN if is_broken else 0)  # a hung thread would keep the process alive
    if engine.opened.done() and (failure := engine.opened.exception()) is not None:
        raise StartError(f"cannot serve {settings.model}: {failure}")


def open_listener(settings: Settings) -> socket.socket:
    """Bind the address that the settings ask for.

    Raises:
        StartError: it cannot be bound.
    """
    if settings.unix_socket is None:
        return listen(settings.host, settings.port)
    return listen_on_path(settings.unix_socket)


def _address(listener: socket.socket) -> str:
    name = listener.getsockname()
    return f"unix:{name}" if isinstance(name, str) else f"http://{name[0]}:{name[1]}"


def listen_on_path(path: Path) -> socket.socket:
    """Bind a Unix domain socket; replace one that a server left behind which was killed.

    Raises:
        StartError: another server listens there, or the path cannot be used.
    """
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        if path.is_socket():
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
                if probe.connect_ex(str(path)) == 0:
                    raise StartError(f"cannot listen on {path}: another server does")
            path.unlink()
        listener.bind(str(path))
        path.chmod(0o666)  # as open as a port of this machine
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        reason = error.strerror or error
        raise StartError(f"cannot listen on {path} (--unix-socket): {reason}") from None
    return listener


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
