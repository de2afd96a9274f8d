"""``refine-server bench overhead``: what the server costs when its model does no work.

Two processes of uvicorn: this server, all of it but the model's work, and a bare FastAPI echo. The
clients, and what is made of their times, are in ``benchmarks.serving.overhead``.
"""

import logging
import multiprocessing
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import uvicorn
from fastapi import FastAPI
from typing_extensions import override

from refine_server.benchmarks.serving.overhead import measure
from refine_server.clients import RefineClient
from refine_server.server.app import create_app
from refine_server.server.engine.backend import Backend, Emit, ShouldStop
from refine_server.server.process import Server, listen, settle
from refine_server.server.settings import Settings
from refine_server.ttt.batching import Call, Program
from refine_server.ttt.interface.events import AnswerCompleted, AnswerDelta
from refine_server.ttt.interface.reports import AdaptationReport, Timings, Usage
from refine_server.ttt.programs.encode import EncodedWork

HOST = "127.0.0.1"
STOP_SECONDS = 10.0


def run(clients: int, rate: float, requests: int, repeats: int) -> dict[str, Any]:
    """See ``benchmarks.serving.overhead.measure``."""
    with ExitStack() as stack:
        ours, echo = (stack.enter_context(_serving(side)) for side in (_serve_ours, _serve_echo))
        sides = {"ours": f"{ours}/v1/answers", "echo": f"{echo}/v1/answers"}
        return measure(sides, clients, rate, requests, repeats)


@contextmanager
def _serving(serve: Callable[[int], None]) -> Iterator[str]:
    """A process that serves on a port of its own, ready; it is stopped at the end."""
    with socket.create_server((HOST, 0)) as probe:
        port = probe.getsockname()[1]
    process = multiprocessing.get_context("spawn").Process(target=serve, args=(port,), daemon=True)
    process.start()
    try:
        with RefineClient(f"http://{HOST}:{port}") as client:
            for _ in client.wait_until_ready():
                if not process.is_alive():
                    raise RuntimeError(f"a server ended with status {process.exitcode}")
        yield f"http://{HOST}:{port}"
    finally:
        process.terminate()
        process.join(STOP_SECONDS)


def _serve_ours(port: int) -> None:
    settings = Settings(model="tiny", host=HOST, port=port, store="none")
    logging.disable()
    server = Server(create_app(settings, _open_idle), settings)
    server.engine.opened.add_done_callback(settle)
    server.run(sockets=[listen(HOST, port)])


def _serve_echo(port: int) -> None:
    app = FastAPI()

    @app.get("/health/ready")
    async def ready() -> None: ...

    @app.post("/v1/answers")
    async def echo(body: dict[str, Any]) -> dict[str, Any]:
        return body

    uvicorn.run(app, host=HOST, port=port, access_log=False, log_level="critical")


def _open_idle(settings: Settings) -> Backend:
    # Imported here, as the parent process needs no torch.
    from refine_server.server.engine.model_backend import ModelBackend

    class IdleBackend(ModelBackend):
        """The bundled tiny model with its tokenizer and checks, but its programs do no work."""

        @override
        def start(self, work: EncodedWork, emit: Emit, should_stop: ShouldStop) -> Program[None]:
            return _answer_at_once(emit)

    return IdleBackend(settings)


async def _answer_at_once(emit: Emit) -> None:
    """Take one turn of the engine, then emit one token and the end of the answer."""
    await Call(lambda: None)
    emit(AnswerDelta("nothing"))
    emit(
        AnswerCompleted(
            answer="nothing",
            base_answer=None,
            finish_reason="stop",
            adaptation=AdaptationReport(
                objective="none",
                steps=(),
                accepted_step=0,
                guard=None,
                stopped=None,
                first_ntp_loss=None,
                final_ntp_loss=None,
                fast_weight_bytes=0,
            ),
            usage=Usage(document_tokens=1, query_tokens=1, completion_tokens=1, rollout_tokens=0),
            timings=Timings(
                prefill_seconds=0.0,
                adapt_seconds=0.0,
                decode_seconds=0.0,
                time_to_first_token_seconds=0.0,
            ),
        )
    )
