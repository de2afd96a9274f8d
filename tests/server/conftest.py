"""Apps and live servers around the scripted backend, and around the tiny model."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack

import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from refine_server.server.app import create_app
from refine_server.server.memory.device import HostMemory
from refine_server.server.settings import Settings
from refine_server.ttt.models import CausalLM, load
from support.fake_backend import FakeBackend
from support.live_server import serving, wait_for, wait_until_open


@pytest.fixture
def fake() -> Iterator[FakeBackend]:
    backend = FakeBackend()
    yield backend
    backend.gate.set()
    backend.open_gate.set()


@pytest.fixture
def make_app(fake: FakeBackend) -> Callable[..., FastAPI]:
    def make(**options: object) -> FastAPI:
        defaults = {"model": "fake", "store": "none", "shutdown_seconds": 0.3}
        return create_app(Settings(**{**defaults, **options}), fake.open)  # type: ignore[arg-type]

    return make


@pytest.fixture
def all_spare(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the memory budget see a process that takes nothing without adaptations and requests.

    A fourth of ``memory_bytes`` is then for adaptations, the rest for requests.
    """
    monkeypatch.setattr(HostMemory, "taken_bytes", lambda self: 0)


@pytest.fixture(name="wait_until_open", scope="session")
def _wait_until_open() -> Callable[[FastAPI], None]:
    return wait_until_open


@pytest.fixture(name="wait_for")
def _wait_for() -> Callable[..., None]:
    return wait_for


@pytest.fixture
def make_client(make_app: Callable[..., FastAPI]) -> Iterator[Callable[..., TestClient]]:
    """Return a function that makes clients of apps in this process, with engines that are ready."""
    with ExitStack() as stack:

        def make(**options: object) -> TestClient:
            app = make_app(**options)
            client = stack.enter_context(TestClient(app, raise_server_exceptions=False))
            wait_until_open(app)
            return client

        yield make


@pytest.fixture
def client(make_client: Callable[..., TestClient]) -> TestClient:
    return make_client()


@pytest.fixture(scope="session", name="serving")
def _serving() -> Callable[[FastAPI], AbstractContextManager[str]]:
    return serving


@pytest.fixture
def live(make_app: Callable[..., FastAPI], fake: FakeBackend) -> Iterator[Callable[..., str]]:
    """Return a function that starts a server with the scripted model and returns its URL."""
    with ExitStack() as stack:

        def start(**options: object) -> str:
            url = stack.enter_context(serving(make_app(**{"shutdown_seconds": 0.3, **options})))
            stack.callback(fake.gate.set)
            return url

        yield start


@pytest.fixture(scope="session")
def tiny_url() -> Iterator[str]:
    """Run a server with the tiny model; yield its URL."""
    settings = Settings(model="tiny", store="none", shutdown_seconds=0.3)
    with serving(create_app(settings)) as url:
        yield url


@pytest.fixture(scope="session")
def tiny() -> CausalLM:
    """Load the tiny model, to compare with."""
    return load("tiny")
