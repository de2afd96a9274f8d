"""A model of transformers computes alike whether flash-linear-attention is installed or not."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import sys
from contextlib import nullcontext
import torch
from refine_server.ttt.models.loading.own_kernels import without_fla

with without_fla() if "hidden" in sys.argv else nullcontext():
    from transformers.models.qwen3_next import modeling_qwen3_next as modeling
q, k, v = (torch.randn(1, 4, 2, 8) for _ in range(3))
g, beta = -torch.rand(1, 4, 2), torch.rand(1, 4, 2)
modeling.torch_chunk_gated_delta_rule(q, k, v, g, beta)
import fla  # which others may still import
"""


@pytest.mark.parametrize("hidden", [True, False])
def test_its_layers_do_not_call_fla(hidden: bool, tmp_path: Path) -> None:
    (tmp_path / "fla").mkdir()
    stub = "def chunk_gated_delta_rule(*args, **kwargs):\n    raise SystemExit('called')\n"
    (tmp_path / "fla/__init__.py").write_text(stub)
    path = os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH"), str(tmp_path)]))
    command = [sys.executable, "-c", SCRIPT, *(["hidden"] if hidden else [])]
    environment = os.environ | {"PYTHONPATH": path}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert ("called" in done.stderr) is not hidden
    assert (done.returncode == 0) is hidden, done.stderr
