"""Counts what work on a GPU launches, without one: meta tensors stand for it.

Run in a process of its own, where Triton's interpreter is off and fla can be imported: launches of
Triton's kernels are intercepted, and operations of torch on meta tensors are counted, apart from
those that only make views or reserve memory.
"""

import importlib.util
import json
import os
import subprocess
import sys
import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from support.fla_interpreter import search_path

FREE = frozenset(
    """empty empty_like new_empty empty_strided new_empty_strided detach view _unsafe_view alias t
    transpose permute expand slice select split split_with_sizes unsqueeze squeeze as_strided
    unbind _reshape_alias lift_fresh unfold narrow diagonal unsafe_split set_ resize_ view_as
    unsafe_chunk movedim swapaxes""".split()  # noqa: SIM905 - a list would have 30 lines
)
"""Operations that launch nothing."""

FLASH, FLASH_BACKWARD = 1, 3
"""Launches of torch's fused attention on a GPU."""


class Counts(TorchDispatchMode):
    """Counts launches and host syncs, and the most bytes that were alive at once.

    Args:
        known: tensors whose bytes are not counted, such as the weights.
    """

    def __init__(self, known: Iterable[Tensor] = ()) -> None:
        super().__init__()
        self._known = {t.untyped_storage()._cdata for t in known}
        self.launches: Counter[str] = Counter()
        self.syncs = 0
        self.bytes = self.peak = 0
        self._alive: set[int] = set()

    @property
    def total(self) -> int:
        return self.launches.total()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        name, kwargs = func.overloadpacket.__name__, kwargs or {}
        on_meta = any(t.device.type == "meta" for t in _tensors((args, kwargs)))
        if on_meta and name == "_local_scalar_dense":
            self.syncs += 1
            return args[0].dtype.is_floating_point and 1.0
        if on_meta and kwargs.get("device") == torch.device("cpu"):
            self.syncs += 1
            return torch.zeros(args[0].shape, dtype=kwargs.get("dtype") or args[0].dtype)
        out = func(*args, **kwargs)
        made = [t for t in _tensors(out) if t.device.type == "meta"]
        if name not in FREE and (on_meta or made):
            self.launches[name] += 1
        for tensor in made:
            self._note(tensor.untyped_storage())
        return out

    def _note(self, storage: Any) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._alive or key in self._known:
            return
        self._alive.add(key)
        self.bytes += size
        self.peak = max(self.peak, self.bytes)
        weakref.finalize(storage, self._forget, key, size)

    def _forget(self, key: int, size: int) -> None:
        self._alive.discard(key)
        self.bytes -= size


def _tensors(tree: Any) -> list[Tensor]:
    return [x for x in tree_leaves(tree) if isinstance(x, Tensor)]


@contextmanager
def counted(known: Iterable[Tensor] = ()) -> Iterator[Counts]:
    """Count what runs within it as if meta tensors were on a GPU."""
    with Counts(known) as counts, _Flash():
        JIT.counts = counts
        yield counts


class JIT:
    """Where launches of Triton's kernels are counted."""

    counts: Counts | None = None

    @classmethod
    def run(cls, kernel: Any, *args: Any, **kwargs: Any) -> None:
        if cls.counts is not None:
            cls.counts.launches[f"triton {kernel.fn.__name__}"] += 1


class _Flash(TorchFunctionMode):
    """Stands for fused attention, of which the meta device knows only the form without fusion."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func is F.scaled_dot_product_attention:
            return _Attention.apply(*args[:3])
        return func(*args, **(kwargs or {}))


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        o = q.new_empty(*q.shape[:-1], v.shape[-1])
        ctx.save_for_backward(q, k, v, o, q.new_empty(q.shape[:-1], dtype=torch.float32))
        _count("flash", FLASH)
        return o

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
        _count("flash backward", FLASH_BACKWARD)
        return tuple(torch.empty_like(x) for x in ctx.saved_tensors[:3])


def _count(name: str, launches: int) -> None:
    if JIT.counts is not None:
        JIT.counts.launches[name] += launches


def prepare() -> None:
    """Let meta tensors take the GPU's path, and launches be counted."""
    from triton.runtime.autotuner import Autotuner
    from triton.runtime.jit import JITFunction

    from refine_server.kernels import dispatch

    JITFunction.run = lambda self, *args, **kwargs: JIT.run(self, *args, **kwargs)
    Autotuner.run = lambda self, *args, **kwargs: self.fn.run(*args, **kwargs)
    dispatch._is_on_gpu = lambda tensor: tensor.device.type == "meta"


def measure(module: str, what: str) -> dict[str, Any]:
    """Run a module in a process of its own, with one argument, and return what it prints."""
    environment = os.environ | {"TRITON_INTERPRET": "0", "PYTHONPATH": search_path()}
    command = [sys.executable, "-m", module, what]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def main(measurements: Callable[[], dict[str, Any]]) -> None:
    """Print measurements as JSON; the body of such a module."""
    assert importlib.util.find_spec("fla"), "make setup installs fla for the tests"
    prepare()
    print(json.dumps(measurements()))
