"""``bench overhead``: what the server adds to a request, without the model's work."""

import asyncio
import inspect
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn
from fastapi import FastAPI

from refine_server.benchmarks.serving import overhead
from refine_server.benchmarks.serving.paced import request_times
from refine_server.clients import RefineClient
from refine_server.server.http import dependencies
from refine_server.server.process import listen

LOAD = {"clients": 3, "rate": 100.0, "requests": 50, "repeats": 1}


@contextmanager
def answering_after(seconds: float, bodies: list[object] | None = None) -> Iterator[str]:
    """Run a server that answers every request after ``seconds``; yield its URL."""
    app = FastAPI()

    @app.get("/health/ready")
    async def ready() -> None: ...

    @app.post("/")
    async def answer(body: dict[str, object]) -> None:
        if bodies is not None:
            bodies.append(body)
        await asyncio.sleep(seconds)

    with listen("127.0.0.1", 0) as listener:
        server = uvicorn.Server(uvicorn.Config(app, log_level="critical"))
        thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
        thread.start()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        for _ in RefineClient(url).wait_until_ready():
            assert thread.is_alive()
        try:
            yield url
        finally:
            server.should_exit = True
            thread.join(10)


def test_no_dependency_is_called_in_a_thread_of_its_own() -> None:
    functions = [f for _, f in inspect.getmembers(dependencies, inspect.isfunction)]
    ours = [f for f in functions if f.__module__ == dependencies.__name__]
    assert ours
    assert all(map(inspect.iscoroutinefunction, ours))


def test_connections_send_at_once() -> None:
    with listen("127.0.0.1", 0) as listener, socket.create_connection(listener.getsockname()):
        connection, _ = listener.accept()
        with connection:
            assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_every_request_is_sent_and_timed() -> None:
    bodies: list[object] = []
    with answering_after(0.02, bodies) as url:
        times = request_times(url, {"n": 1}, clients=4, rate=200.0, count=30)
    assert bodies == [{"n": 1}] * (4 + 30)  # the first of each client opens its connection
    assert len(times) == 30
    assert min(times) >= 20.0


def test_the_difference_of_two_servers_is_found() -> None:
    with answering_after(0.05) as slow, answering_after(0.0) as quick:
        result = overhead.compare({"ours": slow, "echo": quick}, **LOAD)
    assert result["ours_one_client_p50_ms"] >= 50.0
    assert result["more_p50_ms"] > 25.0


def test_both_servers_answer_the_bodies_of_the_bench() -> None:
    result = overhead.run(**LOAD)
    assert result["echo_p50_ms"] > 0
    assert result["ours_p50_ms"] > 0
