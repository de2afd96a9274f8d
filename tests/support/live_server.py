"""Servers of this process on a port of their own."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from fastapi import FastAPI

from refine_server.server.process import Server, listen


def wait_for(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come true"
        time.sleep(0.005)


def wait_until_open(app: FastAPI) -> None:
    if app.state.engine.opened.exception(10) is None:
        kept = (app.state.adaptations, app.state.files, app.state.batches)
        wait_for(lambda: all(resources.is_open for resources in kept))


@contextmanager
def serving(app: FastAPI) -> Iterator[str]:
    """Run a server on a loopback port; yield its URL."""
    listener = listen("127.0.0.1", 0)
    server = Server(app, app.state.settings)
    thread = threading.Thread(target=server.run, args=([listener],))
    thread.start()
    try:
        wait_until_open(app)
        wait_for(lambda: server.started)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(20)
