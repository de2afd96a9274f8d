"""``refine-server demo``: start a server, ask it about an example document, show the difference."""

import json
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from rich.console import Console

from refine_server.clients import RefineClient
from refine_server.server.cli.answer import InputError, answer_there
from refine_server.server.cli.progress import Follower
from refine_server.ttt.interface.config import AdaptConfig

HOST = "127.0.0.1"
START_SECONDS = 600.0
STOP_SECONDS = 10.0


@dataclass(frozen=True)
class Example:
    """A document, a question about it, and the answers that are right."""

    title: str
    document: str
    query: str
    answers: tuple[str, ...]

    @classmethod
    def read(cls, path: Path) -> "Example":
        """The first question of an example file, with the document that lies beside it."""
        try:
            described = json.loads(path.read_text())
            question = described["questions"][0]
            document = (path.parent / described["document"]).read_text()
            answers = tuple(question["answers"])
            return cls(described.get("title", path.stem), document, question["query"], answers)
        except OSError as error:
            raise InputError(f"cannot read {error.filename}: {error.strerror}") from None
        except (ValueError, KeyError, IndexError, TypeError) as error:
            raise InputError(f"{path} is no example file: {error!r}") from None

    def is_answered_by(self, text: str) -> bool:
        """Whether a text holds a right answer, whatever the case and the spaces."""
        said = _plain(text)
        return any(_plain(answer) in said for answer in self.answers)


def run_demo(example_path: Path, model: str) -> bool:
    """Run the whole demonstration; True when the adapted answer is right."""
    example = Example.read(example_path)
    console = Console(stderr=True)
    with running_server(model, console) as url:
        print(f"document: {example.title} ({len(example.document)} characters)")
        print(f"question: {example.query}")
        body = {"document": example.document, "query": example.query, "compare_base": True}
        response = Follower(AdaptConfig().optimizer.steps).follow(answer_there(url, None, body))
    right = example.is_answered_by(response["answer"])
    verdict = "right" if right else f"wrong, expected {' or '.join(example.answers)}"
    seconds = response["timings"]["adapt_seconds"] + response["timings"]["decode_seconds"]
    print(f"adapted answer in {seconds:.1f} s: {verdict}")
    return right


@contextmanager
def running_server(model: str, console: Console) -> Iterator[str]:
    """A server process of our own on a free port, ready; it is stopped at the end."""
    port = _free_port()
    # -P keeps the working directory off sys.path, where `kernels` would shadow a package.
    command = [sys.executable, "-P", "-m", "refine_server.server.cli.main", "serve"]
    command += ["--host", HOST, "--port", str(port), "--model", model]
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            url = f"http://{HOST}:{port}"
            with console.status(f"starting a server with {model} at {url}"):
                _wait(process, url, log)
            yield url
        finally:
            _stop(process)


def _wait(process: "subprocess.Popen[bytes]", url: str, log: IO[bytes]) -> None:
    with RefineClient(url) as client:
        for waited in client.wait_until_ready():
            if process.poll() is not None:
                raise InputError(f"the server did not start:\n{_tail(log)}")
            if waited > START_SECONDS:
                raise InputError(f"the server was not ready in {waited:.0f} s:\n{_tail(log)}")


def _stop(process: "subprocess.Popen[bytes]") -> None:
    process.terminate()
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _tail(log: IO[bytes], lines: int = 15) -> str:
    log.seek(0)
    return "\n".join(log.read().decode(errors="replace").splitlines()[-lines:])


def _free_port() -> int:
    with socket.create_server((HOST, 0)) as probe:
        port: int = probe.getsockname()[1]
        return port


def _plain(text: str) -> str:
    return " ".join(text.casefold().split())
