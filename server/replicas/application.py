"""The application of Ray Serve: an ingress, and replicas of the server behind it.

This module needs Ray (``pip install 'refine-server[ray]'``); the other modules of this folder do
not.
"""

from collections.abc import AsyncIterator
from typing import Any

from fastapi import FastAPI
from ray import serve
from ray.exceptions import RayActorError
from ray.serve.config import RequestRouterConfig
from ray.serve.exceptions import (
    BackPressureError,
    DeploymentUnavailableError,
    ReplicaUnavailableError,
)
from starlette.middleware import Middleware
from starlette.types import Message

from refine_server.server.app import UPLOADS
from refine_server.server.http import exception_handlers
from refine_server.server.http.middleware.body_limit import BodyLimit
from refine_server.server.http.middleware.path_normalization import PathNormalization
from refine_server.server.http.upload import OVERHEAD_BYTES
from refine_server.server.replicas.ingress import Ingress, ReplicaLostError, ReplicasFullError
from refine_server.server.replicas.replica import Replica
from refine_server.server.settings import Settings, SettingsError, check_settings

ROUTER = "ray.serve.experimental.consistent_hash_router.ConsistentHashRouter"
FALLBACK_REPLICAS = 127
"""Replicas that are tried after the one of a session, where that one has no place. So many, because
one document may be asked about more often than a few replicas can answer (docs/scaling.md)."""
SPARE_REQUESTS = 64
"""Requests that a replica takes beside its work: states of adaptations, streams that follow them,
and questions that it refuses itself with an estimate of when to come back."""
INGRESS_REQUESTS = 1000
"""Open requests at one ingress."""
LOGGING = {"log_level": "WARNING", "enable_access_log": False}
"""What Serve logs of replicas and ingress: these log every request themselves."""
HEALTH_SECONDS = 5.0
"""Time between two health checks of a replica."""


class ReplicaDeployment(Replica):
    """A replica that ends in order when Serve stops it."""

    async def __del__(self) -> None:
        # Serve awaits it once there are no more requests, or the grace time is over.
        await self.close()


class IngressDeployment:
    """The ingress in a process of its own.

    Args:
        replicas: Serve's handle of the replicas.
        settings: the server's options, for the limits on bodies.
    """

    def __init__(self, replicas: Any, settings: dict[str, Any]) -> None:
        self._replicas = replicas
        self._settings = Settings.model_validate(settings)

    def __serve_build_asgi_app__(self) -> FastAPI:
        limits = Middleware(
            BodyLimit,
            max_bytes=self._settings.max_body_bytes,
            max_seconds=self._settings.client_timeout_seconds,
            uploads=dict.fromkeys(UPLOADS, self._settings.max_file_bytes + OVERHEAD_BYTES),
        )
        paths = Middleware(PathNormalization, root_path=self._settings.root_path)
        app = FastAPI(openapi_url=None, redirect_slashes=False, middleware=[paths, limits])
        exception_handlers.install(app)
        app.router.default = Ingress(self._forward)
        return app

    async def _forward(
        self, session: str | None, scope: dict[str, Any], body: bytes
    ) -> AsyncIterator[list[Message]]:
        handle = self._replicas.options(stream=True, session_id=session or "")
        response = handle.respond.remote(scope, body)
        try:
            async for messages in response:
                yield messages
        except BackPressureError:
            raise ReplicasFullError from None
        except (RayActorError, ReplicaUnavailableError, DeploymentUnavailableError):
            raise ReplicaLostError from None
        finally:
            response.cancel()


def build(options: dict[str, Any]) -> serve.Application:
    """Build the application from the options of a server.

    ``serve run`` and the ``args`` of a config file give them by the names of their environment
    variables without ``REFINE_``, in lower case, such as ``model``.

    Raises:
        SettingsError: an option is unknown or invalid.
    """
    return application(check_settings(options))


def application(settings: Settings, *, cpus: int = 1) -> serve.Application:
    """Build the application.

    A config file of Serve may override the number of replicas, their resources, and autoscaling.

    Args:
        settings: the options of each replica.
        cpus: the cores of each replica.

    Raises:
        SettingsError: there is no store, in which replicas find each other's adaptations.
    """
    if settings.store == "none":
        raise SettingsError(
            "--store (REFINE_STORE): replicas need a store, in which each finds what the others "
            "made; give a folder or bucket that all of them reach"
        )
    # The file's options are read; other nodes may not have it.
    given = {"api_keys": _secret(settings), "config_file": None}
    options = settings.model_dump(mode="json") | given
    places = settings.max_active + settings.max_queue + SPARE_REQUESTS
    replica = serve.deployment(
        name="Replica",
        num_replicas=settings.replicas,
        max_ongoing_requests=places,
        max_queued_requests=places,
        user_config={},  # without one, Serve does not call `reconfigure`
        request_router_config=RequestRouterConfig(
            request_router_class=ROUTER,
            request_router_kwargs={"num_fallback_replicas": FALLBACK_REPLICAS},
        ),
        health_check_period_s=HEALTH_SECONDS,
        graceful_shutdown_timeout_s=2 * settings.shutdown_seconds + 10.0,
        logging_config=LOGGING,
        ray_actor_options={"num_cpus": cpus, "num_gpus": int(settings.device.startswith("cuda"))},
    )(ReplicaDeployment)
    ingress = serve.deployment(
        name="Ingress",
        num_replicas=1,
        max_ongoing_requests=INGRESS_REQUESTS,
        logging_config=LOGGING,
        max_surge_percent=100,  # in an update, the new one is there before the old one goes
        ray_actor_options={"num_cpus": 0},
    )(serve.ingress()(IngressDeployment))
    return ingress.bind(replica.bind(options), options)


def _secret(settings: Settings) -> str | None:
    return None if settings.api_keys is None else settings.api_keys.get_secret_value()
