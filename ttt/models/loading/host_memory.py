"""Check, before weights are read, that they fit into the memory (RAM) of the host or a GPU."""

from collections.abc import Iterator, Sequence
from math import prod
from pathlib import Path

import torch
from safetensors import safe_open

from refine_server.ttt.models.base import ModelError
from refine_server.ttt.models.device import free_memory

UNLIMITED = 2**60
"""From here on a control group's limit is none (version 1 writes a page-aligned 2**63)."""
ITEM_BYTES = {"F64": 8, "I64": 8, "F32": 4, "I32": 4, "BF16": 2, "F16": 2, "I16": 2}
"""By safetensors' names of types; others have one byte."""


def require_memory(
    files: Sequence[Path], dtype: torch.dtype | None, root: Path = Path("/")
) -> None:
    """Raise ModelError unless the tensors of safetensors files fit into the memory that is free.

    Args:
        files: what will be read.
        dtype: what the tensors will be converted to; both forms exist for a while. None converts
            nothing.
        root: where ``proc`` and ``sys`` are.
    """
    needed = sum(_tensor_bytes(file, dtype) for file in files)
    free = available_memory(root)
    if free is not None and needed > free:
        raise ModelError(
            f"the weights need {_gib(needed)} of memory, but only {_gib(free)} are free: choose a "
            "smaller model or dtype, or raise the memory limit"
        )


def require_device_memory(
    files: Sequence[Path], dtype: torch.dtype | None, device: torch.device
) -> None:
    """Raise ModelError unless the tensors of safetensors files fit into what is free on a GPU."""
    needed = sum(_tensor_bytes(file, dtype) for file in files)
    free = free_memory(device)
    if free is not None and needed > free:
        raise ModelError(
            f"the weights need {_gib(needed)} of GPU memory, but only {_gib(free)} are free on "
            f"{device}: choose a smaller model or dtype, or a GPU with more free memory"
        )


def available_memory(root: Path = Path("/")) -> int | None:
    """Return the bytes that the machine and this process's control groups still allow it.

    None where the system does not tell.
    """
    found = [*_of_machine(root), *_of_groups(root)]
    return min(found) if found else None


def _gib(count: int) -> str:
    return f"{count / 2**30:.2f} GiB"


def _tensor_bytes(file: Path, dtype: torch.dtype | None) -> int:
    total = 0
    try:
        with safe_open(file, "pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 - it is no mapping
                part = tensors.get_slice(name)
                count, stored = prod(part.get_shape()), ITEM_BYTES.get(part.get_dtype(), 1)
                converted = 0 if dtype is None or dtype.itemsize == stored else dtype.itemsize
                total += count * (stored + converted)
    except Exception as error:  # safetensors has kinds of its own
        raise ModelError(f"cannot read {file}: {error}") from error
    return total


def _of_machine(root: Path) -> Iterator[int]:
    for line in _lines(root / "proc/meminfo"):
        if line.startswith("MemAvailable:"):
            yield int(line.split()[1]) * 1024


def _of_groups(root: Path) -> Iterator[int]:
    """Compute limit less use for the process's group and all above it; page cache is not use."""
    for line in _lines(root / "proc/self/cgroup"):
        _, controllers, group = line.split(":", 2)
        if controllers == "":
            top, limit, usage = root / "sys/fs/cgroup", "memory.max", "memory.current"
        elif "memory" in controllers.split(","):
            top = root / "sys/fs/cgroup/memory"
            limit, usage = "memory.limit_in_bytes", "memory.usage_in_bytes"
        else:
            continue
        inner = top / group.strip().lstrip("/")
        # In a container the group's path may be the host's, which is not mounted: the top is then.
        for directory in {top, *(p for p in (inner, *inner.parents) if p.is_relative_to(top))}:
            most, used = _number(directory / limit), _number(directory / usage)
            if most is not None and used is not None and most < UNLIMITED:
                yield max(most - used + _reclaimable(directory), 0)


def _reclaimable(directory: Path) -> int:
    for line in _lines(directory / "memory.stat"):
        name, _, value = line.partition(" ")
        if name in ("inactive_file", "total_inactive_file"):
            return int(value)
    return 0


def _number(path: Path) -> int | None:
    text = "".join(_lines(path)).strip()
    return int(text) if text.isdecimal() else None


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:
        return []
