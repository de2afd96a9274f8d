"""Kernels accept every size, and a size that a request decides compiles nothing new.

Triton turns an integer argument of 1 into a constant and compiles for multiples of 16 apart, so a
kernel that runs for one length may fail, or compile for seconds, at another.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

from refine_server.benchmarks.speed.kernels.cases import CASES, Case

OF_A_REQUEST = ("B", "R", "T", "N", "k", "chunks", "positions", "rollouts")
"""Sizes that requests decide; the others are the model's."""

CLASSES = {"one": 1, "multiple of 16": 48, "neither": 37}

LONG = (1024, 1040, 1031)
"""Lengths whose tiles are of one size: 64 tokens of a chunk, 128 rows of a product."""

SCRIPT = """
import functools, importlib, json, sys
import torch
from refine_server.benchmarks.speed.kernels.cases import CASES, Maker
from refine_server.kernels.aot import lowered

def keys(case, sizes):
    form = importlib.import_module(f"refine_server.kernels.{case.folder}.triton_impl")
    run = case.build(Maker(device="meta", values=torch.bfloat16), **sizes)
    return sorted(lowered(functools.partial(run, getattr(form, case.op))))

cases = {case.name: case for case in CASES}
found = []
for name, sizes in json.loads(sys.argv[1]):
    try:
        found.append(keys(cases[name], sizes))
    except Exception as error:
        found.append(f"{type(error).__name__}: {error}")
print(json.dumps(found))
"""


def sizes_of(case: Case, size: int, names: tuple[str, ...]) -> dict[str, int]:
    """Return the sizes of a case's first model, with those of the request replaced."""
    sizes = dict(next(iter(case.models.values())))
    own = {name: size for name in sizes if name in names}
    if "T" in own and case.name in ("select_positions", "rollout_reward"):
        own["T"] = 2 * size  # of which the chunks or rollouts are a part
    return sizes | own


TRITONS = {"oldest": None, "newest": Path(sys.prefix) / "triton-newest"}
"""Supported versions: the environment's own, and one in a folder that ``make setup`` makes."""


def lowered(triton: str, jobs: list[tuple[str, dict[str, int]]]) -> list[list[str] | str]:
    """Lower each case at its sizes by a version of Triton, in a process without the interpreter."""
    folder, inherited = TRITONS[triton], os.environ.get("PYTHONPATH", "")
    environment = os.environ | {"TRITON_INTERPRET": "0"}
    if folder is not None:
        assert folder.is_dir(), "make setup installs it"
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(folder), inherited]))
    command = [sys.executable, "-c", SCRIPT, json.dumps(jobs)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    found: list[list[str] | str] = json.loads(done.stdout)
    return found


ALL = [
    (case.name, sizes_of(case, size, OF_A_REQUEST)) for case in CASES for size in CLASSES.values()
]
VARIED = {"token_stats": "N", "batched_low_rank": "T", "delta_rule": "T", "lact_apply": "T"}
LENGTHS = {
    case.name: [(case.name, sizes_of(case, length, (VARIED[case.name],))) for length in LONG]
    for case in CASES
    if case.name in VARIED
}


@pytest.fixture(scope="module", params=TRITONS)
def found(request: pytest.FixtureRequest) -> dict[str, list[str] | str]:
    jobs = [*ALL, *(job for jobs in LENGTHS.values() for job in jobs)]
    return dict(zip(map(str, jobs), lowered(request.param, jobs), strict=True))


@pytest.mark.parametrize("job", ALL, ids=str)
def test_every_kernel_accepts_every_class_of_integers(
    job: tuple[str, dict[str, int]], found: dict[str, list[str] | str]
) -> None:
    kernels = found[str(job)]
    assert isinstance(kernels, list), kernels  # otherwise the error
    assert kernels


@pytest.mark.parametrize("op", LENGTHS)
def test_a_length_compiles_nothing_new(op: str, found: dict[str, list[str] | str]) -> None:
    first, *others = (found[str(job)] for job in LENGTHS[op])
    assert all(kernels == first for kernels in others)
