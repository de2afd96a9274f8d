"""Servers whose time per request is all overhead: this one without its model's work, and an echo.

Each runs under uvicorn in a process of its own.
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

from refine_server.benchmarks.common.failures import RunFailedError
from refine_server.clients import RefineClient
from refine_server.server.app import create_app
from refine_server.server.engine.backend.protocol import Backend
from refine_server.server.process import Server, listen, tune_interpreter
from refine_server.server.settings import Settings
from refine_server.ttt.batching import Call, Program
from refine_server.ttt.interface.events import AnswerCompleted, AnswerDelta, Emit, ShouldStop
from refine_server.ttt.interface.reports import AdaptationReport, Timings, Usage
from refine_server.ttt.programs.encode import EncodedWork

HOST = "127.0.0.1"
STOP_SECONDS = 10.0


@contextmanager
def running_servers() -> Iterator[dict[str, str]]:
    """Start both servers; yield the URLs to post to, of ``ours`` and of ``echo``."""
    with ExitStack() as stack:
        yield {
            name: f"{stack.enter_context(_running(serve))}/v1/answers"
            for name, serve in (("ours", _serve_ours), ("echo", _serve_echo))
        }


@contextmanager
def _running(serve: Callable[[int], None]) -> Iterator[str]:
    """Run a server on a free port in a process of its own; yield its URL when it is ready."""
    with socket.create_server((HOST, 0)) as probe:
        port = probe.getsockname()[1]
    process = multiprocessing.get_context("spawn").Process(target=serve, args=(port,), daemon=True)
    process.start()
    try:
        with RefineClient(f"http://{HOST}:{port}") as client:
            for _ in client.wait_until_ready():
                if not process.is_alive():
                    raise RunFailedError(f"a server ended with status {process.exitcode}")
        yield f"http://{HOST}:{port}"
    finally:
        process.terminate()
        process.join(STOP_SECONDS)


def _serve_ours(port: int) -> None:
    settings = Settings(model="tiny", host=HOST, port=port, store="none")
    logging.disable()
    server = Server(create_app(settings, _open_idle), settings)
    server.engine.opened.add_done_callback(tune_interpreter)
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
    from refine_server.server.engine.backend.model_backend import (
        ModelBackend,  # the parent needs no torch
    )

    class IdleBackend(ModelBackend):
        """The bundled tiny model, with its tokenizer and checks, whose programs do no work."""

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
                kept_base_reason=None,
                stopped=None,
                first_ntp_loss=None,
                final_ntp_loss=None,
                fast_weight_bytes=0,
            ),
            usage=Usage(document_tokens=1, query_tokens=1, completion_tokens=1, rollout_tokens=0),
            timings=Timings(
                prefill_seconds=0.0,
                adapt_seconds=0.0,
                judge_seconds=0.0,
                decode_seconds=0.0,
                time_to_first_token_seconds=0.0,
            ),
        )
    )
