"""Replicas on one machine share its cores, its memory and its devices."""

from pathlib import Path

import pytest

from refine_server.server.replicas.shares import Shares, shares_of
from refine_server.server.settings import Settings, SettingsError


def test_cores_and_memory_are_divided() -> None:
    assert shares_of(Settings(replicas=2), 8, 1000) == Shares(cpus=4, memory_bytes=450)


def test_what_is_asked_for_is_for_all_of_them() -> None:
    settings = Settings(replicas=4, memory_bytes=1000, threads=3)
    assert shares_of(settings, 8, 10**9) == Shares(cpus=3, memory_bytes=250)


def test_there_is_a_core_for_each() -> None:
    assert shares_of(Settings(replicas=4), 2, 1000).cpus == 1


def test_replicas_listen_on_a_port() -> None:
    with pytest.raises(SettingsError, match="--unix-socket"):
        shares_of(Settings(replicas=2, unix_socket=Path("/run/refine.sock")), 2, 1000)


def test_each_replica_has_a_device() -> None:
    assert shares_of(Settings(replicas=2, devices="0, 3"), 8, 1000).devices == ("0", "3")
    with pytest.raises(SettingsError, match=r"--devices .*: 2 devices for 3 replicas"):
        shares_of(Settings(replicas=3, devices="0,1"), 8, 1000)
