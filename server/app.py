"""The ASGI application, assembled from its parts."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from importlib.metadata import version

import anyio.to_thread
from fastapi import FastAPI, Security
from fastapi.security import HTTPBearer
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware

from refine_server.server.access.keys import Keyring
from refine_server.server.access.quotas import QuotaKeeper
from refine_server.server.adaptations.registry import Adaptations
from refine_server.server.api import adaptations as adaptation_routes
from refine_server.server.api import answers, document_uploads, estimate, health, models, tokenizer
from refine_server.server.api import batches as batch_routes
from refine_server.server.api import files as file_routes
from refine_server.server.api.answers_schema import ANSWER_EVENTS
from refine_server.server.api.batch_requests import BatchSender
from refine_server.server.api.openai import routes as openai
from refine_server.server.api.openai import unsupported_routes
from refine_server.server.api.openai.responses_api import routes as responses_api
from refine_server.server.api.openapi import add_schemas
from refine_server.server.batches.registry import Batches
from refine_server.server.engine.backend.opening import open_backend
from refine_server.server.engine.backend.protocol import Backend
from refine_server.server.engine.engine import Engine
from refine_server.server.files.conversion.converter import Converter
from refine_server.server.files.registry import Files
from refine_server.server.http import errors, exception_handlers
from refine_server.server.http.dependencies import Services
from refine_server.server.http.endpoints import Endpoints
from refine_server.server.http.middleware.authentication import Authentication
from refine_server.server.http.middleware.body_limit import BodyLimit
from refine_server.server.http.middleware.content_encoding import ContentEncoding
from refine_server.server.http.middleware.head_requests import HeadRequests
from refine_server.server.http.middleware.path_normalization import PathNormalization
from refine_server.server.http.middleware.request_context import RequestContext
from refine_server.server.http.middleware.security_headers import SecurityHeaders
from refine_server.server.http.middleware.send_timeout import SendTimeout
from refine_server.server.http.upload import OVERHEAD_BYTES
from refine_server.server.memory.budget import MemoryBudget
from refine_server.server.memory.collector import MemoryCollector
from refine_server.server.memory.keeper import MemoryKeeper
from refine_server.server.metrics.declarations import Metrics
from refine_server.server.metrics.engine_collector import EngineCollector
from refine_server.server.metrics.engine_observer import EngineMetrics
from refine_server.server.settings import Settings
from refine_server.server.tracing.provider import provider_from_environment
from refine_server.server.tracing.tracing import OFF, Tracing
from refine_server.server.ui import page

DESCRIPTION = """
Every request adapts its own copy of the model's fast weights to its document (REFINE, arXiv
2602.16704) and answers from the adapted model. Every error has the form
`{"error": {"message", "type", "param", "code"}}`.
"""

UPLOADS = (file_routes.UPLOAD_PATH, document_uploads.UPLOAD_PATH)
"""The routes whose bodies are forms with a file."""
BEARER = HTTPBearer(auto_error=False, description="An API key, if the server has any.")
"""Documents the key in the OpenAPI document; the middleware ``Authentication`` checks it."""


def create_app(
    settings: Settings,
    open_backend: Callable[[Settings], Backend] = open_backend,
    tracing: Tracing | None = None,
) -> FastAPI:
    """Create the app. The engine's thread loads the model while the app already answers.

    Args:
        settings: the server's options.
        open_backend: opens the backend that the engine serves; called once, in the engine's thread.
        tracing: records traces; None: by OpenTelemetry's variables, which ask for none if unset.

    Raises:
        SettingsError: the API keys or the variables are invalid, or the store cannot be used.
    """
    if tracing is None and (provider := provider_from_environment()) is not None:
        tracing = Tracing(provider)
    keyring = Keyring.of(settings)
    quotas = QuotaKeeper(keyring)
    memory = MemoryBudget()
    metrics = Metrics()
    metrics.registry.register(MemoryCollector(memory))
    keeper = MemoryKeeper(memory, settings)
    engine = Engine(
        keeper.opening(open_backend),
        settings,
        [EngineMetrics(metrics), keeper, *([] if tracing is None else [tracing.observer()])],
        quotas.document,
        memory,
    )
    metrics.registry.register(EngineCollector(engine))
    metrics.store_limit.set(0 if settings.store == "none" else settings.store_bytes)
    adaptations = Adaptations(engine, settings, metrics, keyring, memory)
    files = Files(settings, metrics, keyring)
    services = Services(engine=engine, adaptations=adaptations, files=files, settings=settings)
    batches = Batches(settings, files, metrics, BatchSender(services, quotas).send)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        engine.start()
        keeping = [
            asyncio.create_task(adaptations.run()),
            asyncio.create_task(files.run(engine.opened)),
            asyncio.create_task(batches.run(engine.opened)),
        ]
        try:
            yield
        finally:
            engine.drain(settings.shutdown_seconds)
            for task in keeping:
                task.cancel()
            await adaptations.close(settings.shutdown_seconds + 1.0)
            await batches.close()
            await files.close()
            await anyio.to_thread.run_sync(engine.stop)
            if tracing is not None:
                await anyio.to_thread.run_sync(tracing.close)

    texts = (answers, estimate, adaptation_routes, openai, responses_api, unsupported_routes)
    modules = (*texts, file_routes, document_uploads, batch_routes, models, tokenizer, health)
    endpoints = Endpoints(module.router for module in modules)
    app = FastAPI(
        title="refine-server",
        version=version("refine-server"),
        description=DESCRIPTION,
        lifespan=lifespan,
        redirect_slashes=False,
        telemetry=OFF if tracing is None else tracing.of_requests(settings.root_path),
        middleware=[
            Middleware(PathNormalization, root_path=settings.root_path),
            Middleware(SecurityHeaders),
            *_cors(settings),
            Middleware(RequestContext, metrics=metrics, endpoints=endpoints, tracing=tracing),
            Middleware(SendTimeout, seconds=settings.client_timeout_seconds),
            Middleware(HeadRequests),
            Middleware(Authentication, keyring=keyring, quotas=quotas),
            Middleware(ContentEncoding),
            Middleware(
                BodyLimit,
                max_bytes=settings.max_body_bytes,
                max_seconds=settings.client_timeout_seconds,
                uploads=dict.fromkeys(UPLOADS, settings.max_file_bytes + OVERHEAD_BYTES),
            ),
        ],
    )
    app.state.settings = settings
    app.state.keyring = keyring
    app.state.quotas = quotas
    app.state.metrics = metrics
    app.state.engine = engine
    app.state.adaptations = adaptations
    app.state.files = files
    app.state.converter = Converter(settings)
    app.state.batches = batches
    app.state.started = int(time.time())
    exception_handlers.install(app)
    for module in modules:
        app.include_router(
            module.router, dependencies=[Security(BEARER)], responses=errors.documented(401, 429)
        )
    if settings.ui:
        page.install(app)
    add_schemas(app, ANSWER_EVENTS.values())
    return app


def _cors(settings: Settings) -> list[Middleware]:
    if not settings.allowed_origins:
        return []
    return [
        Middleware(
            CORSMiddleware,
            allow_origins=settings.allowed_origins,
            allow_methods=["GET", "HEAD", "POST", "PATCH", "DELETE"],
            # Clients send headers of their own, such as OpenAI's x-stainless-*. None is a secret of
            # the browser's: it sends no cookies, and the origin is one that was named.
            allow_headers=["*"],
            allow_private_network=True,
            expose_headers=[
                *(
                    "location",
                    "retry-after",
                    "x-request-id",
                    "x-should-retry",
                    "x-refine-warning",
                    "traceparent",
                ),
            ],
        )
    ]
