"""A Prometheus server for a short time: it scrapes one refine-server and answers queries."""

import math
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

from refine_server.benchmarks.common.failures import RunFailedError

START_SECONDS = 60.0
CONFIGURATION = """
global:
  scrape_interval: {interval}s
  scrape_timeout: {interval}s
  evaluation_interval: {interval}s
rule_files: [{rules}]
scrape_configs:
  - job_name: refine-server
    authorization: {{credentials: {key}}}
    static_configs: [{{targets: ["{target}"]}}]
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Series:
    """One time series that a query returned."""

    labels: dict[str, str]
    times: list[float]
    """In seconds since 1970."""
    values: list[float]
    """Without those that are no numbers."""

    def legend(self, template: str) -> str:
        """Return the series' name by a legend such as ``{{endpoint}} p95``."""
        for name, value in self.labels.items():
            template = template.replace(f"{{{{{name}}}}}", value)
        return template


class Prometheus:
    """The HTTP API of a Prometheus server."""

    def __init__(self, url: str) -> None:
        self._url = url

    def is_scraping(self) -> bool:
        """Return whether it has scraped the server."""
        try:
            asked = {"query": "up == 1"}
            reply = httpx.get(f"{self._url}/api/v1/query", params=asked, trust_env=False)
            return reply.is_success and bool(reply.json()["data"]["result"])
        except httpx.HTTPError:
            return False

    def query(self, expression: str, start: float, end: float, step: float) -> list[Series]:
        """Return what a query finds between two times, one value every ``step`` seconds.

        Raises:
            RunFailedError: the query is invalid.
        """
        asked: dict[str, str | float] = {"query": expression, "start": start}
        asked |= {"end": end, "step": step}
        reply = httpx.get(f"{self._url}/api/v1/query_range", params=asked, trust_env=False)
        if not reply.is_success:
            raise RunFailedError(f"{expression}: {reply.text}")
        found = []
        for one in reply.json()["data"]["result"]:
            points = [(float(at), float(value)) for at, value in one["values"]]
            points = [(at, value) for at, value in points if math.isfinite(value)]
            if points:
                times, values = (list(column) for column in zip(*points, strict=True))
                found.append(Series(labels=one["metric"], times=times, values=values))
        return found


@contextmanager
def scraping(
    target: str, key: str, rules: Sequence[Path], folder: Path, interval: float = 1.0
) -> Iterator[Prometheus]:
    """Run a Prometheus that scrapes a server.

    Args:
        target: host and port of the server.
        key: API key for it.
        rules: files with recording and alert rules.
        folder: for its configuration and its data.
        interval: seconds between two scrapes.

    Raises:
        RunFailedError: it is not there, or does not start.
    """
    configuration = folder / "prometheus.yml"
    paths = ", ".join(str(path.absolute()) for path in rules)
    configuration.write_text(
        CONFIGURATION.format(interval=int(interval), rules=paths, key=key, target=target)
    )
    with socket.create_server(("127.0.0.1", 0)) as probe:
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    command = ["prometheus", f"--config.file={configuration}", f"--web.listen-address={address}"]
    command += [f"--storage.tsdb.path={folder / 'data'}", "--log.level=error"]
    try:
        process = subprocess.Popen(command)
    except FileNotFoundError:
        raise RunFailedError("there is no program prometheus; Debian's package has it") from None
    try:
        prometheus = Prometheus(f"http://{address}")
        began = time.monotonic()
        while not prometheus.is_scraping():
            if process.poll() is not None or time.monotonic() - began > START_SECONDS:
                raise RunFailedError(f"prometheus does not scrape {target}")
            time.sleep(0.1)
        yield prometheus
    finally:
        process.terminate()
        process.wait()
