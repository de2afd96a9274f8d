"""The kernels, measured: errors, what they compile to, and times against their definitions.

Interpreter, compiler and clock cannot share a process: Triton decides when it is imported whether
it interprets or compiles. So errors and resources come from processes of their own.
"""

import importlib
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from typing import Any

import torch

from refine_server.benchmarks.kernel_cases import CASES, Case, Form, Maker

H100_FLOPS, H100_BYTES = 989e12, 3.35e12
"""Dense bf16 operations and bytes of memory a second of an H100 SXM: what a roofline is made of."""

SECONDS_A_SIDE = 0.5
"""How long one side of a comparison is repeated at least."""


def run() -> dict[str, Any]:
    """Every case: ``{"kernels": [...]}``, as ``refine-server bench kernels`` prints it."""
    with ThreadPoolExecutor(2) as pool:
        errors, resources = pool.map(_in_process, ("errors", "resources"))
    kernels = [
        {
            "name": case.name,
            **errors[case.name],
            "sm90": _worst(resources[case.name]),
            "compiled": resources[case.name],
            "cpu_ratio_to_naive": cpu_ratio(case),
            "roofline_seconds": {m: roofline(case, m) for m in case.models},
            **(on_gpu(case) if torch.cuda.is_available() else {}),
        }
        for case in CASES
    ]
    return {"kernels": kernels, "torch": torch.__version__, "threads": torch.get_num_threads()}


def form(case: Case, name: str) -> Form | None:
    """An op's ``naive``, ``torch`` or ``triton`` form, None where there is none."""
    try:
        module = importlib.import_module(f"refine_server.kernels.{case.op}.{name}")
    except ModuleNotFoundError as error:
        if error.name != f"refine_server.kernels.{case.op}.{name}":
            raise
        return None
    chosen: Form = getattr(module, case.op)
    return chosen


# -- errors -------------------------------------------------------------------------------------


def errors() -> dict[str, dict[str, float]]:
    """Largest error of the Triton forms at odd sizes, outputs and gradients, in two dtypes."""
    return {
        case.name: {
            "max_error": max_error(case, torch.float32),
            "max_error_bf16": max_error(case, torch.bfloat16),
        }
        for case in CASES
    }


def max_error(case: Case, dtype: torch.dtype) -> float:
    """As a share of the largest value of each output, against the definition in fp64."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    results = []
    for name, computed in (("naive", torch.float64), ("triton", None)):
        torch.manual_seed(0)
        of_form = form(case, name)
        assert of_form is not None
        results.append(case.build(Maker(device, dtype, computed), **case.odd)(of_form))
    return max(
        float((b.double() - a.double()).abs().max() / a.double().abs().max().clamp_min(1e-6))
        for a, b in zip(*results, strict=True)
    )


# -- resources ----------------------------------------------------------------------------------


def resources(arch: int = 90, cases: list[Case] = CASES) -> dict[str, list[dict[str, Any]]]:
    """What the kernels of each case compile to at its models' sizes, in bf16."""
    from refine_server.kernels.aot import compiled

    found: dict[str, list[dict[str, Any]]] = {}
    for case in cases:
        of_form = form(case, "triton")
        assert of_form is not None
        for model, sizes in case.models.items():
            run = case.build(Maker("meta", torch.bfloat16), **sizes)
            kernels = compiled(lambda run=run, op=of_form: run(op), arch)  # type: ignore[misc]
            found.setdefault(case.name, []).extend(
                {"model": model, **asdict(kernel)} for kernel in kernels
            )
    return found


def _worst(kernels: list[dict[str, Any]]) -> dict[str, Any]:
    worst = {key: max(k[key] for k in kernels) for key in ("registers", "spills", "shared_bytes")}
    return worst | {"wgmma": any(k["wgmma"] for k in kernels)}


# -- times --------------------------------------------------------------------------------------


def cpu_ratio(case: Case) -> float | None:
    """Time of the CPU form over that of the definition; None where the definition is the form."""
    forms = form(case, "naive"), form(case, "torch")
    if forms[0] is None or forms[1] is None:
        return None
    run = case.build(Maker(), **case.cpu)
    naive, fast = (seconds(lambda f=f: run(f)) for f in forms)  # type: ignore[misc]
    return fast / naive


def seconds(run: Callable[[], object], device: str = "cpu") -> float:
    """Median seconds of a run, after one to warm up."""

    def once() -> float:
        started = time.perf_counter()
        run()
        if device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - started

    once()
    times = [once()]
    while sum(times) < SECONDS_A_SIDE and len(times) < 200:
        times.append(once())
    return statistics.median(times)


def roofline(case: Case, model: str) -> float:
    """Seconds that an H100 needs at least: its arithmetic or its memory, whichever is slower."""
    flops, nbytes = case.work(**case.models[model])
    return max(flops / H100_FLOPS, nbytes / H100_BYTES)


def on_gpu(case: Case) -> dict[str, Any]:
    """Times of the Triton form on this GPU at its models' sizes, and against the torch form."""
    measured = {}
    for model, sizes in case.models.items():
        run = case.build(Maker("cuda", torch.bfloat16), **sizes)
        of_triton, of_torch = form(case, "triton"), form(case, "torch") or form(case, "naive")
        ours, theirs = (
            seconds(lambda f=f: run(f), "cuda")  # type: ignore[misc]
            for f in (of_triton, of_torch)
        )
        flops, nbytes = case.work(**sizes)
        measured[model] = {
            "seconds": ours,
            "flops_per_second": flops / ours,
            "bytes_per_second": nbytes / ours,
            "roofline_share": roofline(case, model) / ours,
            "ratio_to_torch": ours / theirs,
        }
    return {"gpu": torch.cuda.get_device_name(), "gpu_times": measured}


# -- processes ----------------------------------------------------------------------------------


def _in_process(what: str) -> Any:
    """What this module's ``errors`` or ``resources`` gives in a process of its own."""
    interpret = what == "errors" and not torch.cuda.is_available()
    environment = os.environ | {
        "TRITON_INTERPRET": "1" if interpret else "0",
        "TRITON_DEFAULT_FP_FUSION": "1",
    }
    command = [sys.executable, "-m", "refine_server.benchmarks.kernels", what]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"measuring the kernels' {what} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


if __name__ == "__main__":
    print(json.dumps({"errors": errors, "resources": resources}[sys.argv[1]]()))
