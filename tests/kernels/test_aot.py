"""Every kernel at the shapes of real models, compiled for GPUs that need not be present."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

pytest.importorskip("triton")

from refine_server.benchmarks.speed.kernels.bench import in_process
from refine_server.benchmarks.speed.kernels.cases import CASES, Case
from refine_server.kernels.aot import SHARED_LIMIT, compiled

SHARED_LIMIT_80 = 166_912  # of an A100

# These take little of a step's time, so a few spilled registers are allowed.
COLD = {("DeltaNet-1.3B branches", "solve_backward")}

# Cases whose products are large enough for Hopper's matrix instruction.
WGMMA = {
    "token_stats": {"share_kernel", "slope_kernel"},
    "batched_low_rank": {"project_kernel"},
    "delta_rule": {"solve", "scan", "read", "scan_backward", "solve_backward", "chunk_backward"},
    "lact_apply": {"swiglu_kernel"},
    "lact_gradient": {"swiglu_kernel"},
    "lact_update_muon": {"product_kernel"},
}


Resources = dict[int, dict[str, list[dict[str, Any]]]]
"""Resources of every kernel of a case, by architecture and case."""


@pytest.fixture(scope="module")
def resources() -> Resources:
    with ThreadPoolExecutor(2) as pool:
        sm90, sm80 = pool.map(lambda args: in_process("resources", *args), (("90",), ("80", "1")))
    return {90: sm90, 80: sm80}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_hopper(case: Case, resources: Resources) -> None:
    kernels = resources[90][case.name]
    assert {k["model"] for k in kernels} == set(case.models)
    for k in kernels:
        assert k["shared_bytes"] <= SHARED_LIMIT, k
        assert k["spills"] <= (64 if (k["model"], k["kernel"]) in COLD else 0), k
    assert WGMMA.get(case.name, set()) <= {k["kernel"] for k in kernels if k["wgmma"]}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_ampere(case: Case, resources: Resources) -> None:
    kernels = resources[80][case.name]
    assert {k["kernel"] for k in kernels} == {k["kernel"] for k in resources[90][case.name]}
    assert all(k["shared_bytes"] <= SHARED_LIMIT_80 and not k["wgmma"] for k in kernels)


def test_nothing_is_compiled_in_the_interpreter() -> None:
    with pytest.raises(RuntimeError, match="TRITON_INTERPRET"):
        compiled(lambda: None)
