"""Which form of an op runs: by device, or as REFINE_KERNELS says."""

import importlib.util
import inspect
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from refine_server.kernels import dispatch
from refine_server.kernels.token_stats import eager as token_stats_eager
from refine_server.kernels.token_stats import naive as token_stats_naive

OPS = {path.parent.name for path in Path(dispatch.__file__).parent.glob("*/naive.py")}
NAIVE, FAST = token_stats_naive.token_stats, token_stats_eager.token_stats


def test_the_environment_is_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("REFINE_KERNELS", raising=False)
    assert dispatch._forced_form() is None
    for form in ("naive", "torch"):
        monkeypatch.setenv("REFINE_KERNELS", form)
        assert dispatch._forced_form() == form
    monkeypatch.setenv("REFINE_KERNELS", "cuda")
    with pytest.raises(ValueError, match="naive, torch, triton, not 'cuda'"):
        dispatch._forced_form()


def test_triton_needs_a_gpu_or_the_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REFINE_KERNELS", "triton")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert dispatch._forced_form() == "triton"
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    with pytest.raises(ValueError, match="CUDA"):
        dispatch._forced_form()


def test_a_form_can_be_forced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "FORCED_FORM", "naive")
    assert dispatch._choose(NAIVE, FAST, triton=True) is NAIVE
    monkeypatch.setattr(dispatch, "FORCED_FORM", "torch")
    assert dispatch._choose(NAIVE, FAST, triton=True) is FAST
    assert dispatch._choose(NAIVE, triton=True) is NAIVE
    triton = pytest.importorskip("refine_server.kernels.token_stats.triton_impl")
    monkeypatch.setattr(dispatch, "FORCED_FORM", "triton")
    chosen = dispatch._choose(NAIVE, FAST, triton=True)
    monkeypatch.setattr(triton, "token_stats", lambda *_: "triton")
    assert chosen(torch.zeros(1, 2), torch.zeros(3, 2), torch.zeros(1)) == "triton"


def test_naive_forces_every_op() -> None:
    script = (
        "from types import FunctionType\n"
        "from refine_server.kernels import dispatch\n"
        "assert dispatch.definitions_only()\n"
        "ops = [op for name, op in vars(dispatch).items() if name[0] != '_']\n"
        "ops = [op for op in ops if isinstance(op, FunctionType)]\n"
        "print(*{op.__module__ for op in ops if '.kernels.' in op.__module__})"
    )
    environment = os.environ | {"REFINE_KERNELS": "naive"}
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    modules = set(done.stdout.split()) - {dispatch.__name__}
    assert modules == {f"refine_server.kernels.{op}.naive" for op in OPS}


def test_by_device(monkeypatch: pytest.MonkeyPatch) -> None:
    class OnGPU(torch.Tensor):
        is_cuda = True

    def on_gpu(dtype: torch.dtype) -> torch.Tensor:
        return torch.zeros(2, dtype=dtype).as_subclass(OnGPU)

    monkeypatch.setattr(dispatch, "_has_triton", lambda: True)
    assert not dispatch._on_gpu((torch.zeros(2),))
    assert dispatch._on_gpu((on_gpu(torch.float32),))
    assert dispatch._on_gpu(([on_gpu(torch.bfloat16)],))  # the optimiser takes lists
    assert dispatch._on_gpu(("exact", on_gpu(torch.float32)))
    assert not dispatch._on_gpu((on_gpu(torch.float64),))
    token_ids = on_gpu(torch.int64)  # they say nothing about the type of the numbers
    assert dispatch._on_gpu(("exact", token_ids, on_gpu(torch.float32)))
    assert not dispatch._on_gpu(("exact", token_ids, on_gpu(torch.float64)))
    monkeypatch.setattr(dispatch, "_has_triton", lambda: False)
    assert not dispatch._on_gpu((on_gpu(torch.float32),))


def test_fla_serves_half_precision_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "_is_on_gpu", lambda tensor: tensor.device.type == "meta")
    monkeypatch.setattr(dispatch, "_has_fla", lambda: True)
    on_gpu = torch.empty(1, 2, 3, 256, dtype=torch.bfloat16, device="meta")
    gate = torch.empty(1, 2, 3, 1, device="meta")
    assert dispatch._fla_serves(on_gpu, None)
    assert dispatch._fla_serves(on_gpu.half(), gate)
    assert not dispatch._fla_serves(on_gpu, gate.expand(1, 2, 3, 256))  # a decay by channel
    assert not dispatch._fla_serves(on_gpu.float(), gate)
    assert not dispatch._fla_serves(torch.cat([on_gpu, on_gpu], dim=-1), gate)  # wide heads
    assert not dispatch._fla_serves(torch.zeros(1, 2, 3, 4).bfloat16(), None)
    monkeypatch.setattr(dispatch, "FORCED_FORM", "torch")
    assert not dispatch._fla_serves(on_gpu, gate)


def test_a_missing_fla_is_reported(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    dispatch._has_fla.cache_clear()
    assert not dispatch._has_fla()
    assert not dispatch._has_fla()
    assert [r.message.count("pip install 'refine-server[gpu]'") for r in caplog.records] == [1]
    dispatch._has_fla.cache_clear()


def test_every_triton_form_has_its_definitions_signature() -> None:
    pytest.importorskip("triton")
    ops = [op for name, op in vars(dispatch).items() if name[0] != "_"]
    chosen = [op.__wrapped__ for op in ops if hasattr(op, "__wrapped__")]
    folders = {naive: Path(inspect.getfile(naive)).parent for naive in chosen}
    definitions = [naive for naive in chosen if (folders[naive] / "triton_impl.py").exists()]
    assert len(definitions) >= 9
    for naive in definitions:
        form = dispatch._form(naive, "triton_impl")
        names = [list(inspect.signature(f).parameters) for f in (naive, form)]
        assert names[0] == names[1], naive
