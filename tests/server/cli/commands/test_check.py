"""``refine-server check``: names everything that has to be changed, and changes nothing else."""

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.command_line import run, run_failing


@pytest.fixture
def taken() -> Iterator[int]:
    """A port on which somebody listens."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


def test_what_can_be_served_is_described(tmp_path: Path) -> None:
    options = ["--model", "tiny", "--port", "0", "--store", (tmp_path / "store").as_uri()]
    shown = run("check", *options)
    assert shown.exit_code == 0, shown.output
    lines = shown.stdout.splitlines()
    assert [line.split()[:2] for line in lines] == [
        ["ok", part] for part in ("keys", "traces", "store", "device", "model", "address")
    ]
    assert "tiny (delta_net)" in shown.stdout


def test_all_problems_are_named_at_once(tmp_path: Path, taken: int) -> None:
    file = tmp_path / "file"
    file.write_text("keys = 1")
    options = ["--model", "nowhere", "--port", taken, "--store", (file / "store").as_uri()]
    shown = run("check", *options, "--device", "cuda:99", "--api-keys-file", file)
    assert shown.exit_code == 2
    told = {line.split()[1]: line for line in shown.stdout.splitlines() if "BAD" in line}
    for part, option in {
        "keys": "--api-keys-file",
        "store": "--store (REFINE_STORE)",
        "device": "--device",
        "model": "--model (REFINE_MODEL)",
        "address": "--port",
    }.items():
        assert option in told[part]
    assert "a server could not start: keys, store, device, model, address" in shown.stderr


def test_a_model_that_does_not_fit_is_named() -> None:
    options = ["--model", "tiny", "--port", "0", "--store", "none", "--memory-bytes", "1000"]
    shown = run("check", *options)
    assert shown.exit_code == 2
    assert "--memory-bytes (REFINE_MEMORY_BYTES)" in shown.stdout


def test_a_path_for_a_socket_is_left_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "server.sock"
    options = ["--model", "tiny", "--store", "none", "--unix-socket", path]
    shown = run("check", *options)
    assert shown.exit_code == 0, shown.output
    assert not path.exists()


def test_an_unknown_option_is_refused() -> None:
    run_failing(2, "--no-such-option", "check", "--no-such-option", "1")


def test_help_is_its_own() -> None:
    shown = run("check", "--help")
    assert shown.exit_code == 0
    assert "Takes the options of serve" in shown.stdout
