"""A server process that can be killed and restarted on the same store."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import IO

import httpx

from refine_server.benchmarks.common.failures import RunFailedError

START_SECONDS = 300.0
STOP_SECONDS = 90.0
SAMPLE = re.compile(r"^(\w+)(?:\{(.*)\})? (\S+)$", re.MULTILINE)


class ServerProcess:
    """``refine-server serve`` on a free loopback port.

    Args:
        options: options of ``serve``, such as ``{"model": "tiny"}``.
        environment: environment variables in addition to this process's.
        log: file for its output.
    """

    def __init__(self, options: dict[str, object], environment: dict[str, str], log: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as probe:
            self.port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._options = {**options, "port": self.port, "host": "127.0.0.1"}
        self._environment = {**os.environ, **environment}
        self._log = log
        self._output: IO[bytes] | None = None
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> float:
        """Start it, wait until it is ready, and return the seconds that this took."""
        # -P keeps the working directory off sys.path, where `kernels` would shadow a package.
        command = [sys.executable, "-P", "-m", "refine_server.server.cli.main", "serve"]
        for name, value in self._options.items():
            command += [f"--{name.replace('_', '-')}", str(value)]
        self._output = self._log.open("ab")
        self._process = subprocess.Popen(
            command, env=self._environment, stdout=self._output, stderr=self._output
        )
        began = time.monotonic()
        while not self._is_ready():
            if self._process.poll() is not None:
                raise RunFailedError(f"the server ended during its start: {self._last_output()}")
            if time.monotonic() - began > START_SECONDS:
                self.kill()
                raise RunFailedError(f"the server was not ready in time: {self._last_output()}")
            time.sleep(0.05)
        return time.monotonic() - began

    @property
    def pid(self) -> int:
        """Process id of the server, which was started."""
        assert self._process is not None, "it was not started"
        return self._process.pid

    def kill(self) -> None:
        """Kill it at once, as a crash would."""
        self._send(signal.SIGKILL)
        self._wait()

    def stop(self) -> int:
        """Ask it to end and return its exit status; kill it if it does not end."""
        self._send(signal.SIGTERM)
        return self._wait()

    def metrics(self, headers: dict[str, str]) -> dict[str, float]:
        """Return the samples of ``/metrics`` by name or ``name{labels}``."""
        text = httpx.get(f"{self.url}/metrics", headers=headers, trust_env=False).text
        return {f"{n}{{{s}}}" if s else n: float(v) for n, s, v in SAMPLE.findall(text)}

    def _last_output(self) -> str:
        """Return the end of the server's log, whose folder may not outlive the run."""
        return self._log.read_text("utf-8", "replace").strip()[-500:]

    def _is_ready(self) -> bool:
        try:
            return httpx.get(f"{self.url}/health/ready", trust_env=False).is_success
        except httpx.HTTPError:
            return False

    def _send(self, number: signal.Signals) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(number)

    def _wait(self) -> int:
        if self._process is None:
            return 0
        try:
            status = self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            status = self._process.wait()
        if self._output is not None:
            self._output.close()
        return status
