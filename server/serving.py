"""``refine-server serve``: the app under uvicorn."""

import logging
import socket
import sys
from concurrent.futures import Future

import uvicorn

from refine_server.server.app import create_app
from refine_server.server.backend import Backend
from refine_server.server.engine import Engine
from refine_server.server.settings import Settings

logger = logging.getLogger(__name__)

LOG_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


class StartError(RuntimeError):
    """The server could not start; the message says why."""


class Server(uvicorn.Server):
    """Uvicorn that lets the engine's jobs end, in good order, before it closes connections."""

    def __init__(self, config: uvicorn.Config, engine: Engine, shutdown_seconds: float) -> None:
        super().__init__(config)
        self.engine = engine
        self.shutdown_seconds = shutdown_seconds

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self.engine.drain(self.shutdown_seconds)
        await super().shutdown(sockets)


def serve(settings: Settings) -> None:
    """Serve until a signal comes.

    Raises:
        StartError: the address is taken, or the model cannot be loaded.
    """
    logging.basicConfig(level=settings.log_level.upper(), format=LOG_FORMAT, stream=sys.stderr)
    logging.getLogger("httpx").setLevel(logging.WARNING)
    listener = _listen(settings.host, settings.port)
    app = create_app(settings)
    engine: Engine = app.state.engine
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,  # RequestContext writes a line with the request's id
        # Past this, what is left is cut: the engine has told every job to end by then.
        timeout_graceful_shutdown=int(settings.shutdown_seconds) + 5,
    )
    server = Server(config, engine, settings.shutdown_seconds)

    def stop_when_failed(opened: "Future[Backend]") -> None:
        if opened.exception() is not None:
            server.should_exit = True

    engine.opened.add_done_callback(stop_when_failed)
    host, port = listener.getsockname()[:2]
    logger.info("listening on http://%s:%s, loading %s", host, port, settings.model)
    server.run(sockets=[listener])
    if engine.opened.done() and (failure := engine.opened.exception()) is not None:
        raise StartError(f"cannot serve {settings.model}: {failure}")


def _listen(host: str, port: int) -> socket.socket:
    """Bind before anything is loaded, so that a taken port is known at once."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except OSError as error:
        raise StartError(f"cannot listen on {host}:{port}: {error.strerror or error}") from None
