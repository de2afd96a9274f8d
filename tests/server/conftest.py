"""A scripted stand-in for the model, apps and live servers around it."""

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest
import uvicorn
from fastapi import FastAPI
from starlette.testclient import TestClient

from refine_server.server.app import create_app
from refine_server.server.backend import SELF_CHECK, Backend
from refine_server.server.serving import Server
from refine_server.server.settings import Settings
from refine_server.ttt.types import (
    AdaptationEnded,
    AdaptationReport,
    AdaptationStep,
    AnswerCompleted,
    AnswerDelta,
    AnswerRequest,
    BaseAnswered,
    DocumentRead,
    Event,
    RequestError,
    StepReport,
    Timings,
    Usage,
)

LONGEST_DOCUMENT = 50


class FakeModel:
    """Takes one step for each that is asked and echoes the query, one letter a token.

    The query is the request's name in ``turns`` and ``closed``. The word "hold" in a document makes
    its steps wait for ``gate``; "crash", "refuse", "nan" and "exit" do what they say.
    """

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.turns: list[str] = []
        self.closed: list[str] = []
        self.fails_to_open: Exception | None = None
        self.fingerprint = "as loaded"
        self.open_gate = threading.Event()
        self.open_gate.set()

    def open(self, _: Settings) -> Backend:
        self.open_gate.wait(10)
        if self.fails_to_open:
            raise self.fails_to_open
        return Backend(
            name="fake",
            family="delta_net",
            parameters=7,
            dtype="float32",
            device="cpu",
            fingerprint=self.fingerprint,
            measure=lambda: self.fingerprint,
            check=self.check,
            perform=lambda work, _: self.answer(work),
        )

    def check(self, request: AnswerRequest) -> int:
        words = len(request.document.split())
        if words > LONGEST_DOCUMENT:
            raise RequestError("document is too long", "document", "document_too_long")
        return words

    def answer(self, request: AnswerRequest) -> Iterator[Event]:
        if request is SELF_CHECK:
            return
        name, words = request.query, request.document.split()
        try:
            yield DocumentRead(len(words), 0.01)
            if request.compare_base:
                yield BaseAnswered("base says no")
            steps = []
            for number in range(1, request.adapt.steps + 1):
                self._work(name, words)
                loss = float("nan") if "nan" in words else 2.0 / number
                steps.append(StepReport(number, loss, 2.0, 0.1, 0.5, 0.1, 3.0, 0.0, 1.0, 0.001, 10))
                yield AdaptationStep(steps[-1])
            guard = "loss_rose" if "worse" in words else None
            accepted = 0 if guard else len(steps)
            report = AdaptationReport("refine", tuple(steps), accepted, guard, None, 2.0, 1.5, 1024)
            yield AdaptationEnded(report, 0.02)
            for letter in name[: request.sampling.max_tokens]:
                self.turns.append(name)
                yield AnswerDelta(letter)
            yield AnswerCompleted(
                answer=name[: request.sampling.max_tokens],
                base_answer="base says no" if request.compare_base else None,
                finish_reason="stop",
                adaptation=report,
                usage=Usage(len(words), 1, len(name), 10 * len(steps)),
                timings=Timings(0.01, 0.02, 0.03, 0.04),
            )
        finally:
            self.closed.append(name)

    def _work(self, name: str, words: list[str]) -> None:
        self.turns.append(name)
        if "hold" in words:
            assert self.gate.wait(20)
        if "slow" in words:
            time.sleep(0.02)
        if "crash" in words:
            raise RuntimeError("secret internals")
        if "refuse" in words:
            raise RequestError("query is unfit", "query", "unfit")
        if "exit" in words:
            raise SystemExit


@pytest.fixture
def fake() -> Iterator[FakeModel]:
    model = FakeModel()
    yield model
    model.gate.set()
    model.open_gate.set()


@pytest.fixture
def make_app(fake: FakeModel) -> Callable[..., FastAPI]:
    def make(**options: object) -> FastAPI:
        return create_app(Settings(**{"model": "fake", **options}), fake.open)  # type: ignore[arg-type]

    return make


def wait_for(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come true"
        time.sleep(0.005)


@pytest.fixture(name="wait_for")
def _wait_for() -> Callable[..., None]:
    return wait_for


@pytest.fixture
def make_client(make_app: Callable[..., FastAPI]) -> Iterator[Callable[..., TestClient]]:
    """Clients of apps in this process, their engines ready."""
    with ExitStack() as stack:

        def make(**options: object) -> TestClient:
            app = make_app(**options)
            client = stack.enter_context(TestClient(app, raise_server_exceptions=False))
            app.state.engine.opened.exception(10)
            return client

        yield make


@pytest.fixture
def client(make_client: Callable[..., TestClient]) -> TestClient:
    return make_client()


@pytest.fixture
def live(make_app: Callable[..., FastAPI], fake: FakeModel) -> Iterator[Callable[..., str]]:
    """Real servers on loopback ports; returns their URLs."""
    with ExitStack() as stack:

        def start(**options: object) -> str:
            app = make_app(**options)
            listener = socket.create_server(("127.0.0.1", 0))
            server = Server(uvicorn.Config(app, log_config=None), app.state.engine, 0.3)
            thread = threading.Thread(target=server.run, args=([listener],))

            def stop() -> None:
                fake.gate.set()
                server.should_exit = True
                thread.join(20)

            thread.start()
            stack.callback(stop)
            app.state.engine.opened.exception(10)
            wait_for(lambda: server.started)
            return f"http://127.0.0.1:{listener.getsockname()[1]}"

        yield start
