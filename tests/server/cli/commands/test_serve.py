import errno
import os
import sys
from pathlib import Path

import pytest
from fsspec.registry import known_implementations

from refine_server.server.settings import Settings
from support.command_line import run, run_failing


def test_help_has_every_option_and_its_variable() -> None:
    shown = run("serve", "--help")
    assert shown.exit_code == 0
    text, whole = " ".join(shown.stdout.split()), "".join(shown.stdout.split())
    for name, field in Settings.model_fields.items():
        if name == "api_keys":  # keys are no flag
            continue
        assert f"--{name.replace('_', '-')} " in text
        assert f"[env: REFINE_{name.upper()}]" in text
        assert field.description
        assert "".join(field.description.split()) in whole  # lines break at hyphens too


def test_bad_options_are_refused_with_status_2() -> None:
    run_failing(2, "--port (REFINE_PORT)", "serve", "--port", "x")
    run_failing(2, "REFINE_PROT", "serve", env={"REFINE_PROT": "1"})
    run_failing(2, "--prot", "serve", "--prot", "1")


def test_replicas_need_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    message = "ray is not installed: pip install 'refine-server[ray]'"
    run_failing(2, message, "serve", "--replicas", "2")
    run_failing(2, message, "serve", "--devices", "0")


@pytest.mark.parametrize("url", ["foo://x", "foo::file:///tmp/x"])
def test_a_store_of_an_unknown_file_system_is_refused(url: str) -> None:
    message = "--store (REFINE_STORE): the store cannot use foo://"
    run_failing(2, message, "serve", "--port", "0", "--store", url)


def test_a_store_whose_file_system_is_not_installed_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lacking = {"class": "no_such_module.FileSystem", "err": "Install no-such-module"}
    monkeypatch.setitem(known_implementations, "lacking", lacking)
    run_failing(2, "Install no-such-module", "serve", "--port", "0", "--store", "lacking://bucket")


def test_a_store_that_is_no_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a directory")
    url = (tmp_path / "file").as_uri()
    message = (
        "Change that, choose another store, or keep adaptations in memory only with --store none"
    )
    run_failing(2, message, "serve", "--port", "0", "--store", url)


@pytest.mark.parametrize(
    ("function", "code", "advice"),
    [
        ("makedirs", errno.EROFS, "make it writable for the server's user"),
        ("makedirs", errno.EACCES, "make it writable for the server's user"),
        ("fsync", errno.ENOSPC, "free some"),
    ],
)
def test_a_store_that_cannot_be_written_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, function: str, code: int, advice: str
) -> None:
    """The tests may run as root, whom a folder's permissions do not stop."""

    def refuse(*_: object, **__: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, function, refuse)
    url = (tmp_path / "store").as_uri()
    message = f"{os.strerror(code)}; {advice}"
    run_failing(2, message, "serve", "--port", "0", "--store", url)
