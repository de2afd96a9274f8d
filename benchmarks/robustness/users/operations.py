"""Someone who operates the server: keys, probes, metrics, the log, SIGTERM."""

import json
import threading
from pathlib import Path

import httpx

from refine_server.benchmarks.robustness.reliability.process import ServerProcess
from refine_server.benchmarks.robustness.users.checks import Checks

NAME = "operator"
KEY = "operator-operator-operator"
MARK = "Heliotrope-Quarry-77"
"""Words of a document that must stand in no log."""


def operate(server: ServerProcess, log: Path, checks: Checks) -> None:
    """Do what an operator does with a running server, and stop it.

    Args:
        server: was started with the key, and with its log as JSON.
        log: the file with the server's output.
        checks: records what is seen.
    """
    headers = {"authorization": f"Bearer {KEY}"}
    with httpx.Client(base_url=server.url, trust_env=False, timeout=600.0) as client:
        with checks.step("probes"):
            checks.check("the probe needs no key", client.get("/health/ready").is_success)
            checks.check("metrics need one", client.get("/metrics").status_code == 401)
        with checks.step("answer"):
            body = {
                "document": f"The password of the {MARK} is amber. The store opens at nine.",
                "query": "What is the password?",
                "adapt": {"preset": "fast"},
                "max_tokens": 8,
            }
            sent = {**headers, "x-request-id": "user-1"}
            checks.check(
                "it answers", client.post("/v1/answers", json=body, headers=sent).is_success
            )
        with checks.step("metrics"):
            samples = server.metrics(headers)
            answers = sum(v for n, v in samples.items() if n.startswith("refine_answers_total{"))
            checks.check("answers are counted", answers >= 1, answers)
    with checks.step("SIGTERM"):
        ended = threading.Event()
        asking = threading.Thread(target=_ask_while_stopping, args=(server.url, headers, ended))
        asking.start()
        status = server.stop()
        asking.join(120)
        checks.check("the exit status is 0", status == 0, status)
        checks.check("a client gets an answer or an error", ended.is_set())
    with checks.step("log"):
        _read_log(log.read_text(), checks)


def _ask_while_stopping(url: str, headers: dict[str, str], ended: threading.Event) -> None:
    body = {"document": "A bell rings. " * 40, "query": "What rings?", "adapt": {}}
    try:
        httpx.post(f"{url}/v1/answers", json=body, headers=headers, trust_env=False, timeout=100.0)
        ended.set()
    except httpx.TransportError:  # it was not listening any more
        ended.set()


def _read_log(text: str, checks: Checks) -> None:
    """Check the lines of a log in JSON."""
    lines = [json.loads(line) for line in text.splitlines() if line.startswith("{")]
    others = [line for line in text.splitlines() if line and not line.startswith("{")]
    checks.check("every line is JSON: no progress bars, no notices", not others, others[:3])
    mine = [line for line in lines if line.get("request_id") == "user-1"]
    checks.check("a request is one line", len(mine) == 1, mine)
    wanted = {
        *("client", "key", "status", "seconds", "model", "document_tokens", "answer_tokens"),
        *("queue_seconds", "read_seconds", "adapt_seconds", "decode_seconds", "answered_by"),
    }
    for line in mine:
        checks.check("it has all fields", wanted <= line.keys(), sorted(wanted - line.keys()))
        checks.check("it names the key", line.get("key") == NAME, line.get("key"))
    checks.check("no text and no key is in it", MARK not in text and KEY not in text)
    probes = [line for line in lines if "/health/" in line["message"]]
    checks.check("probes are not in it", not probes, probes[:1])
