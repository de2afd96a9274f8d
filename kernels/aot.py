"""Compile the Triton forms ahead of time, without their GPU, and read what the kernels need.

An op on ``meta`` tensors computes nothing, but it launches what it would launch at these shapes:
the same kernels, tile sizes and specialisations. Each launch is compiled instead of run.
"""

import functools
import re
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.runtime.driver import driver
from triton.runtime.jit import JITFunction

SHARED_LIMIT = 232_448
"""Bytes of shared memory that one block may use on an H100; a kernel over it still compiles."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Resources:
    """The resources that one compiled kernel needs."""

    kernel: str
    """Its name."""

    registers: int
    """Registers of a thread."""

    spills: int
    """Bytes of a thread's stack, which the compiler uses for registers that it had to spill."""

    shared_bytes: int
    """Shared memory of a block."""

    wgmma: bool
    """Whether Hopper's matrix instruction is in the PTX."""


def compiled(run: Callable[[], object], arch: int = 90) -> list[Resources]:
    """Compile the kernels that ``run`` launches on meta tensors for sm_<arch>.

    Raises:
        RuntimeError: Triton was imported with its interpreter on, which compiles nothing.
    """
    if triton.knobs.runtime.interpret:
        raise RuntimeError("TRITON_INTERPRET must not be 1 where kernels are compiled")
    found: dict[str, Any] = {}
    with _target(arch, found):
        run()
    return [_resources(kernel) for kernel in found.values()]


class _Absent:
    """A driver for a device that is absent: enough of one to compile for it."""

    def __init__(self, arch: int) -> None:
        self.arch = arch

    def get_current_device(self) -> int:
        return -self.arch  # caches of compiled kernels are kept by device

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.arch, 32)


@contextmanager
def _target(arch: int, found: dict[str, Any]) -> Iterator[None]:
    """Within it, a launch compiles for sm_<arch> and adds the kernel to ``found``."""
    launch, active = JITFunction.run, driver._active

    @functools.wraps(launch)
    def compile_only(self: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> Any:
        kernel = launch(self, *args, grid=grid, warmup=True, **kwargs)
        found[kernel.hash] = kernel
        return kernel

    JITFunction.run = compile_only
    driver.set_active(_Absent(arch))
    try:
        yield
    finally:
        JITFunction.run = launch
        driver.set_active(active)


def _resources(kernel: Any) -> Resources:
    """Read a compiled kernel's resources with ``cuobjdump``, which Triton ships."""
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as cubin:
        cubin.write(kernel.asm["cubin"])
        cubin.flush()
        dump = [str(tool), "--dump-resource-usage", cubin.name]
        usage = subprocess.run(dump, check=True, capture_output=True, text=True).stdout
    fields = dict(re.findall(r"\b([A-Z]+):(\d+)", usage))
    return Resources(
        kernel=kernel.metadata.name.strip("_"),
        registers=int(fields["REG"]),
        spills=int(fields["STACK"]) + int(fields["LOCAL"]),
        shared_bytes=kernel.metadata.shared,
        wgmma="wgmma.mma_async" in kernel.asm["ptx"],
    )
