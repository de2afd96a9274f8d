"""Free memory according to the files of a simulated machine, and weights that do not fit."""

import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from refine_server.ttt.models import ModelError
from refine_server.ttt.models.loading import host_memory
from refine_server.ttt.models.loading.host_memory import (
    available_memory,
    require_device_memory,
    require_memory,
)

MIB = 2**20


def machine(root: Path, **files: str) -> Path:
    for name, text in {"proc/meminfo": "MemTotal: 9 kB\nMemAvailable:  8192 kB\n", **files}.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def group(path: str, limit: object, used: int, cache: int = 0) -> dict[str, str]:
    return {
        f"sys/fs/cgroup/{path}memory.max": f"{limit}\n",
        f"sys/fs/cgroup/{path}memory.current": f"{used}\n",
        f"sys/fs/cgroup/{path}memory.stat": f"anon 1\ninactive_file {cache}\n",
    }


def test_the_machine_alone(tmp_path: Path) -> None:
    assert available_memory(machine(tmp_path)) == 8 * MIB


def test_a_system_without_that_information(tmp_path: Path) -> None:
    assert available_memory(tmp_path) is None


@pytest.mark.parametrize(
    ("files", "free"),
    [
        (group("", "max", 5) | group("a/b/", "max", 5), 8 * MIB),
        (group("a/b/", 4 * MIB, MIB), 3 * MIB),
        (group("a/b/", 4 * MIB, MIB, MIB // 2), 3 * MIB + MIB // 2),
        (group("a/b/", 4 * MIB, MIB) | group("a/", 2 * MIB, MIB), MIB),
        (group("", 3 * MIB, MIB), 2 * MIB),  # in a container
        (group("a/b/", MIB, 2 * MIB), 0),
        (group("a/b/", 2**40, 0), 8 * MIB),
    ],
)
def test_control_groups(tmp_path: Path, files: dict[str, str], free: int) -> None:
    root = machine(tmp_path, **{"proc/self/cgroup": "0::/a/b\n"}, **files)
    assert available_memory(root) == free


def test_control_groups_of_version_1(tmp_path: Path) -> None:
    files = {
        "proc/self/cgroup": "4:cpu,memory:/a\n3:cpu:/b\n0::/\n",
        "sys/fs/cgroup/memory/memory.limit_in_bytes": str(2**63 - 4096),
        "sys/fs/cgroup/memory/memory.usage_in_bytes": "7",
        "sys/fs/cgroup/memory/a/memory.limit_in_bytes": str(2 * MIB),
        "sys/fs/cgroup/memory/a/memory.usage_in_bytes": str(MIB),
        "sys/fs/cgroup/memory/a/memory.stat": f"total_inactive_file {MIB // 4}",
    }
    assert available_memory(machine(tmp_path, **files)) == MIB + MIB // 4


def test_no_more_is_free_than_this_machine_has() -> None:
    free = available_memory()
    assert free is not None
    assert 0 < free <= os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.parametrize(
    ("stored", "dtype", "fits"),
    [
        (torch.bfloat16, None, True),  # 6 MiB
        (torch.float32, None, False),  # 12
        (torch.bfloat16, torch.bfloat16, True),
        (torch.bfloat16, torch.float32, False),  # 6 + 12
    ],
)
def test_weights_must_fit(
    tmp_path: Path, stored: torch.dtype, dtype: torch.dtype | None, fits: bool
) -> None:
    root, sizes = machine(tmp_path), {"a": MIB, "b": MIB // 2}
    files = [tmp_path / "1.safetensors", tmp_path / "2.safetensors"]
    for file in files:
        tensors = {name: torch.zeros(size, dtype=stored) for name, size in sizes.items()}
        save_file(tensors, file)
    if fits:
        require_memory(files, dtype, root)
    else:
        with pytest.raises(
            ModelError, match=r"the weights need 0\.0[12] GiB of memory, but only 0\.01 GiB"
        ):
            require_memory(files, dtype, root)


def test_weights_must_fit_into_the_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, gpu = tmp_path / "1.safetensors", torch.device("cuda", 1)
    save_file({"a": torch.zeros(2 * MIB, dtype=torch.bfloat16)}, file)  # 4 MiB
    monkeypatch.setattr(host_memory, "free_memory", lambda device: 9 * MIB)
    require_device_memory([file], None, gpu)
    with pytest.raises(ModelError, match=r"0\.01 GiB of GPU memory.*cuda:1"):
        require_device_memory([file], torch.float32, gpu)  # 4 + 8


def test_a_file_that_is_no_safetensors(tmp_path: Path) -> None:
    (tmp_path / "x.safetensors").write_bytes(b"pickle")
    with pytest.raises(ModelError, match=r"cannot read .*x\.safetensors"):
        require_memory([tmp_path / "x.safetensors"], None)
