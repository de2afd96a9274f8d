"""Measures the kernels: errors, compiled resources, and times against their definitions.

The interpreter, the compiler and the timer need separate processes, because Triton decides at
import whether it interprets or compiles.
"""

import functools
import importlib
import json
import os
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from refine_server.benchmarks.speed.kernels.cases import CASES, Case, Form, Maker, Run

H100_FLOPS, H100_BYTES = 989e12, 3.35e12
"""Dense bf16 operations and memory bytes per second of an H100 SXM, for roofline figures."""

SECONDS_A_SIDE = 0.5
"""Minimum seconds for which each side of a comparison is repeated."""


def run() -> dict[str, Any]:
    """Measure every case: ``{"kernels": [...]}``, as ``refine-server bench kernels`` prints it."""
    with ThreadPoolExecutor(2) as pool:
        tasks = [
            ("resources", "90", "3", "0", "2"),
            ("resources", "90", "3", "1", "2"),
            ("errors",),
        ]
        even, odd, errors = pool.map(lambda task: in_process(*task), tasks)
    resources = even | odd
    kernels = [
        {
            "name": case.name,
            **errors[case.name],
            "sm90": _worst(resources[case.name]),
            "compiled": resources[case.name],
            "cpu_ratio_to_naive": cpu_ratio(case),
            "models": {m: {**least(case, m), **unfused(case, m)} for m in case.models},
            **(on_gpu(case) if torch.cuda.is_available() else {}),
        }
        for case in CASES
    ]
    return {"kernels": kernels, "torch": torch.__version__, "threads": torch.get_num_threads()}


def form(case: Case, name: str) -> Form:
    """Return an op's ``naive``, ``eager`` or ``triton_impl`` form; naive where eager is missing."""
    path = f"refine_server.kernels.{case.folder}.{name}"
    try:
        module = importlib.import_module(path)
    except ModuleNotFoundError as error:
        if error.name != path or name != "eager":
            raise
        return form(case, "naive")
    if name == "eager" and not hasattr(module, case.op):
        return form(case, "naive")
    chosen: Form = getattr(module, case.op)
    return chosen


# -- errors -------------------------------------------------------------------------------------


def errors() -> dict[str, dict[str, float]]:
    """Return the Triton forms' largest error at odd sizes, outputs and gradients, by dtype."""
    return {
        case.name: {
            "max_error": max_error(case, torch.float32),
            "max_error_bf16": max_error(case, torch.bfloat16),
        }
        for case in CASES
    }


def max_error(case: Case, dtype: torch.dtype) -> float:
    """Return the error against the definition in fp64, relative to each output's maximum."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    results = []
    for name, computed in (("naive", torch.float64), ("triton_impl", None)):
        torch.manual_seed(0)
        results.append(case.build(Maker(device, dtype, computed), **case.odd)(form(case, name)))
    return max(
        float((b.double() - a.double()).abs().max() / a.double().abs().max().clamp_min(1e-6))
        for a, b in zip(*results, strict=True)
    )


# -- resources ----------------------------------------------------------------------------------


def resources(
    arch: int = 90, most: int = 3, part: int = 0, parts: int = 1
) -> dict[str, list[dict[str, Any]]]:
    """Compile the kernels of each case at the sizes of ``most`` models, in bf16.

    Compiling takes half a minute, so it can be divided: a process takes every ``parts``-th case,
    starting at ``part``.
    """
    from refine_server.kernels.aot import compiled

    found: dict[str, list[dict[str, Any]]] = {}
    for case in CASES[part::parts]:
        for model, sizes in list(case.models.items())[:most]:
            run = case.build(Maker("meta", torch.bfloat16), **sizes)
            kernels = compiled(functools.partial(run, form(case, "triton_impl")), arch)
            found.setdefault(case.name, []).extend(
                {"model": model, **asdict(kernel)} for kernel in kernels
            )
    return found


def _worst(kernels: list[dict[str, Any]]) -> dict[str, Any]:
    worst = {key: max(k[key] for k in kernels) for key in ("registers", "spills", "shared_bytes")}
    return worst | {"wgmma": any(k["wgmma"] for k in kernels)}


# -- times --------------------------------------------------------------------------------------


def cpu_ratio(case: Case) -> float | None:
    """Return the CPU form's time over the definition's; None where they are the same."""
    naive, fast = form(case, "naive"), form(case, "eager")
    if fast is naive:
        return None
    run = case.build(Maker(), **case.cpu)
    return seconds(run, fast) / seconds(run, naive)


def seconds(run: Run, of_form: Form, device: str = "cpu") -> float:
    """Return the median seconds of a run, after one warm-up run."""

    def once() -> float:
        started = time.perf_counter()
        run(of_form)
        if device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - started

    once()
    times = [once()]
    while sum(times) < SECONDS_A_SIDE and len(times) < 200:
        times.append(once())
    return statistics.median(times)


def least(case: Case, model: str) -> dict[str, float]:
    """Return the minimum bytes of a case and the minimum seconds on an H100.

    The seconds are those of its arithmetic or of its memory traffic, whichever is slower.
    """
    flops, nbytes = case.work(**case.models[model])
    return {
        "least_bytes": nbytes,
        "roofline_seconds": max(flops / H100_FLOPS, nbytes / H100_BYTES),
    }


class _Counted(TorchDispatchMode):
    """Counts ops that compute something, and the bytes that they read and write."""

    FREE = frozenset(
        {"empty", "new_empty", "empty_like", "detach", "_unsafe_view", "_reshape_alias"}
    )

    ops, bytes = 0, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if not func.is_view and func.__name__.split(".")[0] not in self.FREE:
            touched = tree_leaves((args, kwargs, result))
            self.ops += 1
            self.bytes += sum(x.nbytes for x in touched if isinstance(x, torch.Tensor))
        return result


def unfused(case: Case, model: str) -> dict[str, float]:
    """Count launches and memory traffic of the form in torch ops: one launch an op, no caching."""
    decides = case.op == "fast_weight_optim"  # branches on values, which meta tensors do not have
    maker = Maker("cpu" if decides else "meta", torch.bfloat16)
    run = case.build(maker, **case.models[model])
    with _Counted() as counted:  # type: ignore[no-untyped-call]
        run(form(case, "eager"))
    return {"unfused_ops": counted.ops, "unfused_bytes": counted.bytes}


def on_gpu(case: Case) -> dict[str, Any]:
    """Time the Triton form on this GPU at its models' sizes, and against the eager form."""
    measured = {}
    for model, sizes in case.models.items():
        run = case.build(Maker("cuda", torch.bfloat16), **sizes)
        ours = seconds(run, form(case, "triton_impl"), "cuda")
        theirs = seconds(run, form(case, "eager"), "cuda")
        flops, nbytes = case.work(**sizes)
        measured[model] = {
            "seconds": ours,
            "flops_per_second": flops / ours,
            "bytes_per_second": nbytes / ours,
            "roofline_share": least(case, model)["roofline_seconds"] / ours,
            "ratio_to_torch": ours / theirs,
        }
    return {"gpu": torch.cuda.get_device_name(), "gpu_times": measured}


# -- processes ----------------------------------------------------------------------------------


def in_process(what: str, *arguments: str) -> Any:
    """Run this module's ``errors`` or ``resources`` in a process of its own; return its result."""
    interpret = what == "errors" and not torch.cuda.is_available()
    environment = os.environ | {
        "TRITON_INTERPRET": "1" if interpret else "0",
        "TRITON_DEFAULT_FP_FUSION": "1",
    }
    command = [
        sys.executable,
        "-m",
        "refine_server.benchmarks.speed.kernels.bench",
        what,
        *arguments,
    ]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"measuring the kernels' {what} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


if __name__ == "__main__":
    what, *arguments = sys.argv[1:]
    found = errors() if what == "errors" else resources(*map(int, arguments))
    print(json.dumps(found))
