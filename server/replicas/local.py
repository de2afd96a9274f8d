"""Several replicas on this machine: ``refine-server serve --replicas N``.

Starts Ray, and Ray Serve in it, for the time of this process.
"""

import logging
import os
import signal
import threading

import psutil
import ray
from ray import serve as ray_serve
from ray.serve.config import HTTPOptions

from refine_server.server import logs
from refine_server.server.access.keys import Keyring
from refine_server.server.process import StartError, listen, warn_if_unprotected
from refine_server.server.replicas.application import LOGGING, application
from refine_server.server.replicas.shares import shares_of
from refine_server.server.settings import Settings, SettingsError

logger = logging.getLogger(__name__)

APPLICATION = "refine-server"
OBJECT_STORE_BYTES = 256 * 2**20
"""Memory for the bodies of requests on their way between processes."""


def serve(settings: Settings) -> None:
    """Serve with several replicas until a signal arrives.

    Raises:
        StartError: the address is in use, or the replicas cannot be started.
        SettingsError: an option does not fit the number of replicas.
    """
    logs.configure(settings.log_level, settings.log_format)
    if settings.unix_socket is not None:
        raise SettingsError("--unix-socket: replicas listen on --host and --port only")
    cpus = os.cpu_count() or 1
    shares = shares_of(settings, cpus, psutil.virtual_memory().available)
    listen(settings.host, settings.port).close()  # a port in use is reported before Ray starts
    warn_if_unprotected(Keyring.of(settings), settings.host)
    changes: dict[str, object] = {"memory_bytes": shares.memory_bytes}
    if shares.devices:
        os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(shares.devices)
        changes |= {"device": "cuda"}
    share = settings.model_copy(update=changes)
    os.environ.setdefault("RAY_COLOR_PREFIX", "0")
    try:
        ray.init(
            address="local",
            num_cpus=max(cpus, shares.cpus * settings.replicas),
            num_gpus=len(shares.devices),
            object_store_memory=OBJECT_STORE_BYTES,
            include_dashboard=False,
            logging_level=logging.WARNING,
        )
    except Exception as error:  # Ray's own errors have no other class
        raise StartError(f"Ray cannot be started: {error}") from error
    try:
        ray_serve.start(
            http_options=HTTPOptions(host=settings.host, port=settings.port),
            logging_config=LOGGING,
        )
        logger.info("starting %d replicas of %s", settings.replicas, settings.model)
        try:
            ray_serve.run(application(share, cpus=shares.cpus), name=APPLICATION, route_prefix="/")
        except RuntimeError as error:
            raise StartError(f"cannot serve {settings.model}: {error}") from None
        logger.info("ready: http://%s:%s", settings.host, settings.port)
        _wait_for_signal()
        ray_serve.shutdown()
    finally:
        ray.shutdown()


def _wait_for_signal() -> None:
    """Wait for SIGTERM or SIGINT, whose handlers Ray has replaced by its own."""
    ended = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ended.set())
    ended.wait()
