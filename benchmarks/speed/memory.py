"""Peak memory of one adaptation step by document length, each in a process of its own."""

import json
import resource
import subprocess
import sys
from typing import Any

import torch

from refine_server.ttt.interface.config import AdaptConfig
from refine_server.ttt.models import load
from refine_server.ttt.refine.inputs.rows import Rows
from refine_server.ttt.refine.step import AdaptationRun, AdaptStep, StepDone

KIB = 1024


def run(model: str, shortest: int, longest: int, budget: int | None) -> dict[str, Any]:
    """Measure the peak memory of a step on documents of two lengths.

    Args:
        model: name of the model, as for ``load``.
        shortest: length of the short document in tokens.
        longest: length of the long document in tokens.
        budget: bytes of activations above which segments are recomputed; None: never.
    """
    short, long = (_in_a_process(model, tokens, budget) for tokens in (shortest, longest))
    return {
        "model": model,
        "activation_budget_bytes": budget,
        "shortest": shortest,
        "longest": longest,
        "shortest_peak_bytes": short["peak"],
        "longest_peak_bytes": long["peak"],
        "shortest_step_bytes": short["peak"] - short["before"],
        "longest_step_bytes": long["peak"] - long["before"],
        "shortest_step_seconds": short["seconds"],
        "longest_step_seconds": long["seconds"],
        "peak_ratio": long["peak"] / short["peak"],
    }


def _in_a_process(model: str, tokens: int, budget: int | None) -> dict[str, Any]:
    command = [sys.executable, "-P", "-m", __name__, model, str(tokens), json.dumps(budget)]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True)
    figures: dict[str, Any] = json.loads(done.stdout)
    return figures


def measure(name: str, tokens: int, budget: int | None) -> dict[str, float]:
    """Return this process's peak memory before and after one step, and the step's seconds."""
    model = load(name)
    model.activation_budget = budget
    config = AdaptConfig(guard="none")
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, model.config.vocab_size, (1, tokens), generator=generator)
    before = _peak()
    fast = model.new_fast_weights(
        config.fast_weights.targets, config.fast_weights.rank, config.seed
    )
    document = Rows(model, ids, fast, positions=config.rollouts.positions)
    [outcome] = AdaptStep.run_batch([AdaptStep(AdaptationRun.of(document, fast, config), 1)])
    assert isinstance(outcome, StepDone)
    return {"before": before, "peak": _peak(), "seconds": outcome.report.seconds}


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * KIB


if __name__ == "__main__":
    sys.stdout.write(json.dumps(measure(sys.argv[1], int(sys.argv[2]), json.loads(sys.argv[3]))))
