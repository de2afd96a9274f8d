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
from types import SimpleNamespace
from typing import Any

import triton
from triton._C.libtriton import ir
from triton.backends.compiler import GPUTarget
from triton.compiler import make_backend
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
    with _target(_Absent(arch)) as kernels:
        run()
    return [_resources(kernel) for kernel in kernels.values()]


def lowered(run: Callable[[], object]) -> set[str]:
    """Translate the kernels that ``run`` launches on meta tensors to Triton's own language.

    A kernel that does not accept the type of an argument fails here, within milliseconds;
    ``compiled`` goes on to machine code.

    Returns:
        One key for each binary that a GPU would need: the kernel's name, and the types, constants
        and launch options that it is compiled for.

    Raises:
        RuntimeError: Triton was imported with its interpreter on, which compiles nothing.
    """
    if triton.knobs.runtime.interpret:
        raise RuntimeError("TRITON_INTERPRET must not be 1 where kernels are compiled")
    with _target(_Absent(90, index=-1), _translate) as kernels:
        run()
    return set(kernels)


def _translate(source: Any, target: GPUTarget, options: dict[str, Any]) -> Any:
    """Stand in for ``triton.compile`` and stop after its first stage."""
    backend = make_backend(target)
    parsed = backend.parse_options(options)
    context = ir.context()
    ir.load_dialects(context)
    backend.load_dialects(context)
    functions = backend.get_codegen_implementation(parsed)
    source.make_ir(target, parsed, functions, backend.get_module_map(), context)
    return SimpleNamespace(hash=f"{source.name} {source.hash()} {parsed.hash()}")


class _Absent:
    """A driver for a device that is absent: enough of one to compile for it."""

    def __init__(self, arch: int, index: int | None = None) -> None:
        self.arch = arch
        self.index = -arch if index is None else index  # kernels are cached by device

    def get_current_device(self) -> int:
        return self.index

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.arch, 32)


@contextmanager
def _target(
    device: _Absent, compiler: Callable[..., Any] = triton.compile
) -> Iterator[dict[str, Any]]:
    """Within it, a launch compiles for an absent device and adds the kernel to what is yielded."""
    launch, active = JITFunction.run, driver._active
    found: dict[str, Any] = {}

    @functools.wraps(launch)
    def compile_only(self: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> Any:
        _ = self.device_caches[device.index]  # which sets the compiler
        self.compile = compiler
        kernel = launch(self, *args, grid=grid, warmup=True, **kwargs)
        self.compile = triton.compile
        found[kernel.hash] = kernel
        return kernel

    JITFunction.run = compile_only
    driver.set_active(device)
    try:
        yield found
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
