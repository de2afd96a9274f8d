"""The ASGI application, put together from its parts."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from importlib.metadata import version

import anyio.to_thread
from fastapi import FastAPI

from refine_server.server import errors
from refine_server.server.adaptations import Adaptations
from refine_server.server.backend import Backend, open_backend
from refine_server.server.engine import Engine
from refine_server.server.metrics import Metrics
from refine_server.server.middleware import BodyLimit, RequestContext
from refine_server.server.routes import adaptations as adaptation_routes
from refine_server.server.routes import answers, models, openai, ops, tokenizer
from refine_server.server.settings import Settings

DESCRIPTION = """
Every request adapts its own copy of the model's fast weights to its document (REFINE, arXiv
2602.16704), then answers from it. Every error is `{"error": {"message", "type", "param", "code"}}`.
"""


def create_app(
    settings: Settings, open_backend: Callable[[Settings], Backend] = open_backend
) -> FastAPI:
    """An app whose model is loaded by the engine's thread while the app already answers.

    Args:
        settings: the options.
        open_backend: makes what the engine serves; called once, in the engine's thread.
    """
    metrics = Metrics()
    engine = Engine(partial(open_backend, settings), settings, metrics)

    adaptations = Adaptations(engine, settings, metrics)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        engine.start()
        keeping = asyncio.create_task(adaptations.run())
        try:
            yield
        finally:
            engine.drain(settings.shutdown_seconds)
            keeping.cancel()
            await adaptations.close(settings.shutdown_seconds + 1.0)
            await anyio.to_thread.run_sync(engine.stop)

    app = FastAPI(
        title="refine-server",
        version=version("refine-server"),
        description=DESCRIPTION,
        lifespan=lifespan,
    )
    app.state.settings = settings
    app.state.metrics = metrics
    app.state.engine = engine
    app.state.adaptations = adaptations
    app.state.started = int(time.time())
    app.add_middleware(BodyLimit, max_bytes=settings.max_body_bytes)
    app.add_middleware(RequestContext, metrics=metrics)
    errors.install(app)
    for routes in (answers, adaptation_routes, openai, models, tokenizer, ops):
        app.include_router(routes.router)
    return app
