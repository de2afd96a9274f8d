"""An S3 API over HTTP (moto) whose faults a test can switch on."""

import io
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import parse_qs

from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import WSGIRequestHandler, make_server

StartResponse = Callable[..., Any]
SLOW_DOWN = (
    b"<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"
)


class FaultyS3:
    """The WSGI application of an object store that misbehaves as it is told."""

    def __init__(self) -> None:
        self._store = DomainDispatcherApplication(create_backend_app)
        self.url = ""
        self.seconds = 0.0
        """Every request takes this much longer."""
        self.failing = 0
        """How many of the next requests are answered with 503."""
        self.tears_uploads = False
        """Whether only half of an object is stored that is uploaded, as if that were all."""
        self.lags = False
        """Whether listings stay as they were when they were first asked for."""
        self._listings: dict[str, tuple[Any, list[bytes]]] = {}

    def heal(self) -> None:
        """End all faults."""
        self.seconds, self.failing, self.tears_uploads, self.lags = 0.0, 0, False, False
        self._listings.clear()

    def __call__(self, environ: dict[str, Any], start: StartResponse) -> Iterable[bytes]:
        time.sleep(self.seconds)
        if self.failing > 0:
            self.failing -= 1
            start("503 Slow Down", [("content-type", "application/xml")])
            return [] if environ["REQUEST_METHOD"] == "HEAD" else [SLOW_DOWN]
        if self.tears_uploads and environ["REQUEST_METHOD"] == "PUT":
            body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
            half = body[: len(body) // 2]
            checks = [name for name in environ if name.startswith("HTTP_X_AMZ_CHECKSUM")]
            for name in [*checks, "HTTP_X_AMZ_TRAILER", "HTTP_CONTENT_MD5"]:
                environ.pop(name, None)
            environ["wsgi.input"] = io.BytesIO(half)
            environ["CONTENT_LENGTH"] = str(len(half))
        query = environ.get("QUERY_STRING", "")
        if self.lags and "list-type" in parse_qs(query):
            return self._lagging(environ["PATH_INFO"] + query, environ, start)
        answer: Iterable[bytes] = self._store(environ, start)
        return answer

    def _lagging(self, key: str, environ: dict[str, Any], start: StartResponse) -> Iterable[bytes]:
        if key not in self._listings:
            head: list[Any] = []
            body = list(self._store(environ, lambda *args: head.extend(args)))
            self._listings[key] = head, body
        head, body = self._listings[key]
        start(*head)
        return body


class _Quiet(WSGIRequestHandler):
    def log(self, type: str, message: str, *args: Any) -> None:
        """Log nothing."""


@contextmanager
def serving_s3() -> Iterator[FaultyS3]:
    """Run an object store on a loopback port."""
    store = FaultyS3()
    server = make_server("127.0.0.1", 0, store, threaded=True, request_handler=_Quiet)
    store.url = f"http://127.0.0.1:{server.port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield store
    finally:
        server.shutdown()
        thread.join(10)
