"""A server that answers by a script, in the format of the HTTP API."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

MODEL = {
    "id": "scripted",
    "family": "f",
    "parameters": 7,
    "fingerprint": "beef",
    "max_model_len": 9,
    "context_length": None,
    "prompt_form": "plain",
}
DEFAULTS = {
    "objective": {"default": "refine"},
    "optimizer": {"$ref": "#/components/schemas/OptimizerConfig"},
}
SCHEMAS = {
    "AdaptConfig": {"properties": DEFAULTS},
    "OptimizerConfig": {"properties": {"steps": {"default": 8}, "max_seconds": {}}},
}
STEP = {
    "loss": 2.5,
    "ntp_loss": 2.0,
    "grpo_loss": 0.5,
    "reward_mean": 0.25,
    "reward_std": 0.1,
    "entropy_mean": 3.0,
    "kl": None,
    "attention": 0.0,
    "grad_norm": 1.0,
    "seconds": 0.01,
    "rollout_tokens": 20,
    "trace": None,
}


def answer_of(text: str, objective: str) -> dict[str, Any]:
    """Return the whole response to a question."""
    steps = [] if objective == "none" else [{"step": 1, **STEP}, {"step": 2, **STEP}]
    return {
        "id": "answer-1",
        "model": "scripted",
        "answer": text,
        "base_answer": None,
        "finish_reason": "stop",
        "answered_by": "adapted" if steps else "base",
        "kept_base_reason": None,
        "adaptation": None,
        "citations": [],
        "quotes": [],
        "base_quotes": [],
        "trace": None,
        "overflow": None,
        "context": "document",
        "adaptation_report": {
            "objective": objective,
            "steps": steps,
            "accepted_step": len(steps),
            "stopped": None,
            "first_ntp_loss": 2.0,
            "final_ntp_loss": 1.5,
            "held_out": [],
            "fast_weight_bytes": 64,
        },
        "usage": {
            "document_tokens": 10,
            "query_tokens": 5,
            "completion_tokens": len(text),
            "rollout_tokens": 20 * len(steps),
        },
        "timings": {
            "queue_seconds": 0.1,
            "prefill_seconds": 0.2,
            "adapt_seconds": 0.3,
            "judge_seconds": 0.05,
            "other_seconds": 0.0,
            "total_seconds": 1.05,
            "decode_seconds": 0.4,
            "time_to_first_token_seconds": 0.5,
        },
    }


class Scripted:
    """The server's state. ``say`` answers a request's body, or raises for an error response."""

    def __init__(self) -> None:
        self.say: Callable[[dict[str, Any]], str] = lambda body: "yes"
        self.bodies: list[dict[str, Any]] = []
        """The bodies of all requests, in order of arrival."""
        self.overflow: dict[str, Any] | None = None
        """How the document of each answer was shortened."""
        self.trace: dict[str, Any] | None = None
        """Trace of each step, for requests that ask for traces."""
        self.held_out: list[dict[str, Any]] = []
        """Held-out evaluations of each answer."""
        self.seconds = 0.0
        """Duration of each answer."""
        self.active = 0
        self.most_active = 0
        self.lock = threading.Lock()
        self.url = ""


class Handler(BaseHTTPRequestHandler):
    """Implements the routes that benchmarks use."""

    script: Scripted

    def do_GET(self) -> None:
        replies: dict[str, dict[str, Any]] = {
            "/health/ready": {"status": "ready"},
            "/version": {"version": "9.9"},
            "/openapi.json": {"components": {"schemas": SCHEMAS}},
            "/v1/models": {"data": [{"created": 1, **MODEL}]},
        }
        self._reply(200, json.dumps(replies[self.path]), "application/json")

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        script = self.script
        with script.lock:
            script.bodies.append(body)
            script.active += 1
            script.most_active = max(script.most_active, script.active)
        time.sleep(script.seconds)
        try:
            text = script.say(body)
        except Exception as error:
            fields = {"message": str(error), "type": "invalid_request_error", "code": "scripted"}
            self._reply(422, json.dumps({"error": {**fields, "param": None}}), "application/json")
            return
        finally:
            with script.lock:
                script.active -= 1
        if self.path == "/v1/completions":
            completion = {"choices": [{"index": 0, "text": text}]}
            self._reply(200, json.dumps(completion), "application/json")
            return
        events = [("answer.delta", {"text": letter}) for letter in text]
        answer = answer_of(text, body["adapt"]["objective"]) | {"overflow": self.script.overflow}
        report = answer["adaptation_report"] | {"held_out": script.held_out}
        if body["adapt"].get("trace"):
            traced = [{**step, "trace": script.trace} for step in report["steps"]]
            report["steps"] = traced
        answer["adaptation_report"] = report
        events.append(("answer.completed", answer))
        stream = "".join(f"event: {name}\ndata: {json.dumps(data)}\n\n" for name, data in events)
        self._reply(200, stream, "text/event-stream")

    def log_message(self, *_: Any) -> None:
        pass

    def _reply(self, status: int, text: str, kind: str) -> None:
        data = text.encode()
        self.send_response(status)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


@pytest.fixture
def scripted() -> Iterator[Scripted]:
    script = Scripted()
    handler = type("ScriptedHandler", (Handler,), {"script": script})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    script.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield script
    server.shutdown()
    thread.join()
    server.server_close()
