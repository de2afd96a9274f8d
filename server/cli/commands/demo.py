"""``refine-server demo``: start a server, ask it about an example document, check the answer."""

import json
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import IO, Annotated, Self

import typer

from refine_server.server.cli.exit import FAILED, InputError

HOST = "127.0.0.1"
START_SECONDS = 600.0
STOP_SECONDS = 10.0
TINY_MODELS = ("tiny", "tiny-nested")
"""Models that know few words, and answer questions of one form only."""


def demo(
    example: Annotated[
        Path | None,
        typer.Option(
            help="Example file (JSON): a document and questions with answers. Default: a ship's "
            "log, or for tiny and tiny-nested notes in the words that they know."
        ),
    ] = None,
    model: Annotated[
        str,
        typer.Option(help="Model to serve: smollm2, tiny, tiny-nested, a directory or a hub id."),
    ] = "smollm2",
) -> None:
    """Start a server and ask it about an example document, with and without evidence.

    The question is asked twice: of the model with the whole document, and as /v1/answers does it,
    with the question's evidence repeated between document and question. The document is read once
    for both. The exit status is 0 if the second answer is right and 1 if it is wrong.
    """
    from refine_server.server.cli.event_sources import answer_by_server
    from refine_server.server.cli.progress import Follower

    chosen = Example.read(default_example(model) if example is None else example)
    body = {"document": chosen.document, "query": chosen.query}
    with running_server(model) as url:
        print(f"document: {chosen.title} ({len(chosen.document)} characters)")
        print(f"question: {chosen.query}")
        print("\nwith the whole document:")
        whole = Follower().follow(answer_by_server(url, None, body | {"context": "document"}))
        print("\nwith its evidence:")
        response = Follower().follow(answer_by_server(url, None, body))
    right = chosen.is_answered_by(response["answer"])
    print(f"\nwhole document: {chosen.verdict(whole['answer'])}")
    print(f"evidence: {chosen.verdict(response['answer'])}")
    raise typer.Exit(0 if right else FAILED)


def default_example(model: str) -> Path:
    """Return the example of the package that is asked of a model."""
    name = "tiny_example" if model in TINY_MODELS else "ships_log"
    return Path(str(resources.files("refine_server.examples"))) / f"{name}.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class Example:
    """One question of an example file, and the document that it is about."""

    title: str
    document: str
    query: str
    answers: tuple[str, ...]
    """An answer is right if it contains any of these."""

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a question of an example file, and the document that the file names.

        It is the one whose number ``demo`` says, or else the first.

        Raises:
            InputError: a file cannot be read, or is not an example.
        """
        try:
            example = json.loads(path.read_text())
            question = example["questions"][example.get("demo", 0)]
            return cls(
                title=example.get("title", path.stem),
                document=(path.parent / example["document"]).read_text(),
                query=question["query"],
                answers=tuple(question["answers"]),
            )
        except OSError as error:
            raise InputError(f"cannot read {error.filename}: {error.strerror}") from None
        except (ValueError, KeyError, IndexError, TypeError) as error:
            raise InputError(f"{path} is not an example file: {error!r}") from None

    def is_answered_by(self, text: str) -> bool:
        """Return whether a text has a right answer; case and white space do not matter."""
        said = _normalized(text)
        return any(_normalized(answer) in said for answer in self.answers)

    def verdict(self, text: str) -> str:
        """Say whether a text is right, and what would be."""
        return "right" if self.is_answered_by(text) else f"wrong, expected {self.expected}"

    @property
    def expected(self) -> str:
        """The right answers."""
        return " or ".join(self.answers)


@contextmanager
def running_server(model: str) -> Iterator[str]:
    """Start a server on a free port in a process of its own; yield its URL when it is ready.

    Raises:
        InputError: the server did not start, with the end of its log.
    """
    from rich.console import Console

    port = _free_port()
    # -P keeps the working directory off sys.path, where `kernels` would shadow a package.
    command = [sys.executable, "-P", "-m", "refine_server.server.cli.main", "serve"]
    command += ["--host", HOST, "--port", str(port), "--model", model]
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            url = f"http://{HOST}:{port}"
            with Console(stderr=True).status(f"starting a server with {model} at {url}"):
                _wait_until_ready(process, url, log)
            yield url
        finally:
            _stop(process)


def _wait_until_ready(process: "subprocess.Popen[bytes]", url: str, log: IO[bytes]) -> None:
    from refine_server.clients import RefineClient

    with RefineClient(url) as client:
        for waited in client.wait_until_ready():
            if process.poll() is not None:
                raise InputError(f"the server did not start:\n{_tail(log)}")
            if waited > START_SECONDS:
                raise InputError(f"the server was not ready after {waited:.0f} s:\n{_tail(log)}")


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


def _normalized(text: str) -> str:
    return " ".join(text.casefold().split())
