"""flash-linear-attention's kernels in Triton's interpreter, in a process of its own.

The package is in a folder of the virtual environment that is not on Python's path (``make setup``):
where transformers finds it, its models call kernels that need a GPU.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from refine_server.ttt.models.tape import Graph, Tape
from refine_server.ttt.pieces import run_pieces

FOLDER = Path(sys.prefix) / "fla"


@dataclass(frozen=True, kw_only=True)
class FlaCase:
    """Sizes of one comparison with the definition."""

    T: int
    before: Sequence[Sequence[int]]
    """[B, G], tokens of each row whose states get gradients."""
    B: int = 1
    key_heads: int = 1
    heads: int = 1
    K: int = 16
    V: int = 16
    decays: bool = True
    has_state: bool = True
    grid_limit: int = 65_535
    """Rows of heads that one launch takes."""
    calls: int = 1
    """Backward passes through the graph."""
    recomputed: bool = False
    """Whether a tape forgets the op's graph and computes it again for the gradient."""


def errors(cases: Sequence[FlaCase]) -> list[dict[str, float]]:
    """Compute the largest errors of outputs and gradients, relative to the largest value of each.

    The definition runs in fp64, the form in fp32: the interpreter's bf16 is not that of a GPU.
    """
    environment = os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": search_path()}
    command = [sys.executable, "-m", __name__, json.dumps([asdict(case) for case in cases])]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    found: list[dict[str, float]] = json.loads(done.stdout)
    return found


def search_path() -> str:
    """Return Python's path for a process that finds fla, and this package."""
    inherited = os.environ.get("PYTHONPATH")
    own = str(Path(__file__).parents[1]), str(FOLDER)
    return os.pathsep.join([*([inherited] if inherited else []), *own])


class _LoopIndex(int):
    """A loop variable as a compiled kernel sees it; the interpreter's own are plain integers."""

    def to(self, dtype: object) -> "_LoopIndex":
        return self


def _indices(*bounds: int) -> Iterator[_LoopIndex]:
    return map(_LoopIndex, range(*bounds))


def _prepare() -> None:
    """Give loops such variables, and keep the first configuration of autotuned kernels."""
    from fla.ops.common import chunk_delta_h
    from triton.runtime.autotuner import Autotuner

    chunk_delta_h.range = _indices
    modules = [module for name, module in sys.modules.items() if name.startswith("fla.")]
    kernels = [kernel for module in modules for kernel in vars(module).values()]
    for kernel in kernels:
        inner = kernel
        while hasattr(inner, "run"):  # the wrappers of a kernel
            if isinstance(inner, Autotuner):
                inner.configs = inner.configs[:1]
            inner = getattr(inner, "fn", None)


def _error(case: FlaCase) -> dict[str, float]:
    from refine_server.kernels.gated_delta_rule import fla as form

    form.GRID_LIMIT = case.grid_limit
    torch.manual_seed(0)
    B, T, H = case.B, case.T, case.heads
    q, k = (F.normalize(torch.randn(B, case.key_heads, T, case.K), dim=-1) for _ in "qk")
    v, beta, g = torch.randn(B, H, T, case.V), torch.rand(B, H, T), -0.3 * torch.rand(B, H, T, 1)
    inputs = {"q": q, "k": k, "v": v, "beta": beta}
    inputs |= {"g": g} if case.decays else {}
    inputs |= {"state": torch.randn(B, H, case.K, case.V)} if case.has_state else {}
    expected = _results(case, inputs, torch.float64, _definition, Tape())
    actual = _results(case, inputs, torch.float32, _form, Tape())
    return {name: _relative(actual[name], expected[name]) for name in expected}


def _relative(x: Tensor, y: Tensor) -> float:
    return float((x - y).abs().max() / y.abs().max().clamp_min(1e-9))


def _results(
    case: FlaCase, inputs: dict[str, Tensor], dtype: torch.dtype, op: Any, tape: Tape
) -> dict[str, Tensor]:
    """Run an op: outputs, states before the case's tokens, and gradients of all of them."""
    leaves = {name: x.to(dtype, copy=True).requires_grad_() for name, x in inputs.items()}
    outputs = dict(zip(("o", "before", "final"), op(case, tape, **leaves), strict=True))
    generator = torch.Generator().manual_seed(7)
    total = sum(
        (x * torch.randn(x.shape, generator=generator).to(dtype)).sum() for x in outputs.values()
    )
    if case.recomputed:
        total.backward()
        run_pieces(tape.backward())
        gradients = [leaf.grad for leaf in leaves.values()]
    else:
        for _ in range(case.calls):
            gradients = torch.autograd.grad(total, list(leaves.values()), retain_graph=True)
    named = {f"gradient of {name}": x for name, x in zip(leaves, gradients, strict=True)}
    return {name: x.detach() for name, x in (outputs | named).items()}


def _form(case: FlaCase, tape: Tape, **own: Tensor) -> Any:
    from refine_server.kernels.delta_rule import fla as delta_rule
    from refine_server.kernels.gated_delta_rule import fla as gated_delta_rule

    op = gated_delta_rule.gated_delta_rule if case.decays else delta_rule.delta_rule
    graph = tape if case.recomputed else Graph()
    o, memory = graph.cut(lambda: op(**own), recompute=True)
    return o, memory.before(torch.tensor(case.before)), memory.last()


def _definition(
    case: FlaCase, _: Tape, q: Tensor, k: Tensor, v: Tensor, beta: Tensor, **own: Tensor
) -> Any:
    from refine_server.kernels.delta_rule import CHUNK
    from refine_server.kernels.gated_delta_rule import naive

    q, k = (x.repeat_interleave(case.heads // case.key_heads, 1) for x in (q, k))
    g = own.get("g", torch.zeros(*beta.shape, 1, dtype=beta.dtype))
    o, states = naive.gated_delta_rule(q, k, v, g, beta, own.get("state"))
    row = torch.arange(case.B)[:, None]
    before = states[row, :, torch.tensor(case.before) // CHUNK].flatten(0, 1)
    return o, before, states[:, :, -1]


if __name__ == "__main__":
    _prepare()
    print(json.dumps([_error(FlaCase(**case)) for case in json.loads(sys.argv[1])]))
