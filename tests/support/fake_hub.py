"""A hub on this machine: checkpoints by id, as huggingface_hub asks for them."""

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from typing_extensions import override

COMMIT = "0" * 40


@contextmanager
def serve_hub(models: dict[str, Path]) -> Iterator[str]:
    """Serve directories as repositories by their ids; yield the hub's URL."""

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self._answer(with_body=False)

        def do_GET(self) -> None:
            self._answer(with_body=True)

        def _answer(self, *, with_body: bool) -> None:
            path = self.path.partition("?")[0]
            for id, directory in models.items():
                if path.startswith(f"/api/models/{id}/tree/"):
                    tree = [_described(file) for file in directory.iterdir()]
                    return self._send(json.dumps(tree).encode(), with_body)
                if path.startswith(f"/api/models/{id}"):
                    files = [{"rfilename": file.name} for file in directory.iterdir()]
                    about = {"id": id, "modelId": id, "sha": COMMIT, "siblings": files}
                    return self._send(json.dumps(about).encode(), with_body)
                name = path.removeprefix(f"/{id}/resolve/{COMMIT}/")
                if name != path and (directory / name).is_file():
                    return self._send((directory / name).read_bytes(), with_body)
            return self.send_error(404)

        def _send(self, body: bytes, with_body: bool) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("ETag", hashlib.sha256(body).hexdigest())
            self.send_header("X-Repo-Commit", COMMIT)
            self.end_headers()
            if with_body:
                self.wfile.write(body)

        @override
        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def _described(file: Path) -> dict[str, str | int]:
    return {
        "type": "file",
        "path": file.name,
        "size": file.stat().st_size,
        "oid": hashlib.sha1(file.read_bytes()).hexdigest(),
    }
