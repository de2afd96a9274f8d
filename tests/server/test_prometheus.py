"""The metrics, checked by ``promtool`` and scraped by a Prometheus server."""

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.testclient import TestClient

from refine_server.ttt.interface.errors import RequestError
from support.fake_backend import Script

KEY = "scrape-scrape-scrape"
BODY = {"document": "a b c", "query": "who", "adapt": {"optimizer": {"steps": 2}}}

pytestmark = pytest.mark.skipif(
    shutil.which("promtool") is None and "CI" not in os.environ,
    reason="needs Debian's package prometheus",
)


def test_promtool_has_no_complaints(client: TestClient, fake: Any) -> None:
    fake.script("worse", Script(kept_base_reason="no_better_step"))
    fake.fail("crash")
    fake.fail("refused", RequestError("query is unfit", "query", "unfit"))
    for document in ("a", "worse", "crash", "refused"):
        client.post("/v1/answers", json={**BODY, "document": document})
    checked = subprocess.run(
        ["promtool", "check", "metrics"],
        input=client.get("/metrics").text,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (checked.returncode, checked.stderr) == (0, "")


CONFIG = """
global: {{scrape_interval: 200ms, scrape_timeout: 200ms}}
scrape_configs:
  - job_name: refine
    authorization: {{credentials: {key}}}
    static_configs: [{{targets: ["{target}"]}}]
"""


def test_a_real_prometheus_scrapes_with_a_key(
    live: Callable[..., str], tmp_path: Path, wait_for: Callable[..., None]
) -> None:
    url = live(api_keys=f"prometheus:{KEY}")
    headers = {"authorization": f"Bearer {KEY}"}
    for _ in range(3):
        assert httpx.post(f"{url}/v1/answers", json=BODY, headers=headers).status_code == 200
    config = tmp_path / "prometheus.yml"
    config.write_text(CONFIG.format(key=KEY, target=url.removeprefix("http://")))
    with socket.create_server(("127.0.0.1", 0)) as probe:
        own = f"127.0.0.1:{probe.getsockname()[1]}"
    command = ["prometheus", f"--config.file={config}", f"--web.listen-address={own}"]
    command += [f"--storage.tsdb.path={tmp_path / 'data'}", "--log.level=error"]
    process = subprocess.Popen(command)

    def query(expression: str) -> list[dict[str, Any]]:
        try:
            reply = httpx.get(f"http://{own}/api/v1/query", params={"query": expression})
            found: list[dict[str, Any]] = reply.json()["data"]["result"] if reply.is_success else []
            return found
        except httpx.HTTPError:
            time.sleep(0.1)
            return []

    try:
        wait_for(lambda: bool(query("up == 1")), 30)
        wait_for(lambda: bool(query("refine_generated_tokens_total == 9")), 30)
        (model,) = query("refine_model_info")
        assert model["metric"]["model"] == "fake"
        (steps,) = query("refine_adapt_step_seconds_count")
        assert steps["value"][1] == "6"
        (slowest,) = query(
            'histogram_quantile(1, refine_request_seconds_bucket{endpoint="/v1/answers"})'
        )
        assert float(slowest["value"][1]) <= 600
    finally:
        process.terminate()
        process.wait(10)
