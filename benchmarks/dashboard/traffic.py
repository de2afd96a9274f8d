"""Requests of every kind that the dashboard shows, also those that are refused or end late."""

import itertools
import json
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import httpx

from refine_server.server.access.keys import new_key

THREADS = 6
DOCUMENT = (
    "The harbour master wrote down which boats came in. The {number}th boat was the {name}, which "
    "came from the north with salt and left with the tide of the same evening. "
)
NAMES = "Anna", "Bertha", "Clara", "Dora", "Emma", "Frieda"
QUERY = "Which boat came from the north?"
STEPS = {"optimizer": {"steps": 2}}
WITH_ROLLOUTS = {**STEPS, "preset": "paper", "rollouts": {"positions": 2}}
NO_TIME_FOR_STEPS = {"optimizer": {"steps": 2, "max_seconds": 1e-3}}
"""The base weights answer, because no step is made."""
TOO_LITTLE_SECONDS = 0.05
"""Time limit of requests that cannot end within it."""

Body = dict[str, object]


class Traffic:
    """Sends requests to a server of this machine.

    Args:
        url: the server.
        key: an API key without quotas.
        limited_key: an API key that may send few requests a minute.
    """

    def __init__(self, url: str, key: str, limited_key: str) -> None:
        self._client = httpx.Client(base_url=url, trust_env=False, timeout=120)
        self._key, self._limited_key = key, limited_key
        self._rounds = itertools.count()

    def send_round(self) -> None:
        """Send one request of each kind and wait for all of them."""
        number = next(self._rounds)
        with ThreadPoolExecutor(THREADS) as pool:
            for sent in [pool.submit(send) for send in self._together(number)]:
                sent.result()
        self._alone()

    def _alone(self) -> None:
        """Send what is drafted from its prompt only if it is alone, and what ends too late."""
        repeated = "one two three four five six seven " * 4
        self._post("/v1/completions", {"prompt": repeated, "max_tokens": 16, "temperature": 0})
        late = {"document": DOCUMENT, "query": QUERY, "max_tokens": 512}
        self._post("/v1/answers", {**late, "timeout_seconds": TOO_LITTLE_SECONDS})

    def _together(self, number: int) -> Iterable[Callable[[], object]]:
        document = "".join(DOCUMENT.format(number=n, name=NAMES[n % 6]) for n in range(6))
        document += f"This was written on page {number % 3}. "
        asked: Body = {"document": document, "query": QUERY, "max_tokens": 16}
        whole: Body = {**asked, "context": "document"}
        adapted = {**whole, "adapt": WITH_ROLLOUTS}
        for body in (asked, adapted, adapted, {**whole, "adapt": NO_TIME_FOR_STEPS}):
            yield partial(self._post, "/v1/answers", body)
        yield lambda: self._keep_and_ask({"document": document, "adapt": STEPS})
        chat = {"messages": [{"role": "user", "content": QUERY}], "max_tokens": 8, "stream": True}
        yield lambda: self._post("/v1/chat/completions", chat)
        yield lambda: self._post("/v1/answers", {**asked, "unknown": 1})
        yield lambda: self._post("/v1/answers", asked, key="wrong")
        yield lambda: self._post("/v1/answers", asked, key=self._limited_key)
        yield lambda: self._run_batch([asked])

    def _post(self, path: str, body: Body, key: str | None = None) -> httpx.Response:
        headers = {"authorization": f"Bearer {key or self._key}"}
        return self._client.post(path, json=body, headers=headers)

    def _keep_and_ask(self, body: Body) -> None:
        """Keep an adaptation, which later rounds find again, and ask it."""
        made = self._post("/v1/adaptations", body)
        if made.is_success:
            asked = {"adaptation": made.json()["id"], "query": QUERY, "max_tokens": 8}
            self._post("/v1/answers", asked)

    def _run_batch(self, bodies: Iterable[Body]) -> None:
        lines = (
            {"custom_id": str(n), "method": "POST", "url": "/v1/answers", "body": body}
            for n, body in enumerate(bodies)
        )
        text = "\n".join(map(json.dumps, lines))
        headers = {"authorization": f"Bearer {self._key}"}
        uploaded = self._client.post(
            "/v1/files",
            files={"file": ("requests.jsonl", text)},
            data={"purpose": "batch"},
            headers=headers,
        )
        if uploaded.is_success:
            asked: Body = {"input_file_id": uploaded.json()["id"], "endpoint": "/v1/answers"}
            self._post("/v1/batches", {**asked, "completion_window": "24h"})


def write_keys(file: Path) -> tuple[str, str]:
    """Write a key file for the traffic; return a key without quotas and one with few requests."""
    key, entry = new_key("dashboard")
    limited_key, limited = new_key("limited")
    quotas = "\n[keys.quotas]\nrequests_per_minute = 1\n"
    file.write_text(f"{entry.toml()}\n{limited.toml()}{quotas}")
    return key, limited_key
