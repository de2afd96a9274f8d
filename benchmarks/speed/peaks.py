"""Peaks of memory that are predicted of a model's shapes, against those of real adaptations.

Each adaptation runs in a process of its own, with malloc tuned as in the server.
"""

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from refine_server.server.cli.runtime import tune_runtime
from refine_server.server.memory.allocator import return_freed_memory
from refine_server.ttt.footprint.figures import measure
from refine_server.ttt.interface.config import AdaptConfig, OptimizerConfig
from refine_server.ttt.models import load
from refine_server.ttt.pieces import run_pieces
from refine_server.ttt.refine.inputs.rows import Rows
from refine_server.ttt.refine.loop import choose_weights, prepare
from refine_server.ttt.refine.step import AdaptationRun, AdaptStep, StepDone

CONFIG = AdaptConfig(optimizer=OptimizerConfig(steps=2))
RESET_PEAK = "5"
"""Written to ``/proc/self/clear_refs``, it makes the present resident size the highest so far."""


def run(model: str, lengths: Sequence[int]) -> dict[str, Any]:
    """Compare the predicted and the measured peak of the process at some document lengths.

    Args:
        model: name of the model, as for ``load``.
        lengths: of the documents, in tokens.
    """
    predicted = measure(model, lengths=lengths).peak_bytes
    measured = {T: _in_a_process(model, T) for T in lengths}
    return {
        "model": model,
        "predicted_bytes": predicted,
        "measured_bytes": measured,
        "predicted_to_measured": {T: round(predicted[T] / measured[T], 3) for T in lengths},
    }


def _in_a_process(model: str, tokens: int) -> int:
    command = [sys.executable, "-P", "-m", __name__, model, str(tokens)]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True)
    peak: int = json.loads(done.stdout)
    return peak


def peak_of_adaptation(name: str, tokens: int) -> int:
    """Adapt to a document with the guard; return the highest resident size meanwhile, in bytes."""
    model = load(name)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, model.config.vocab_size, (1, tokens), generator=generator)
    return_freed_memory()
    Path("/proc/self/clear_refs").write_text(RESET_PEAK)
    own = CONFIG.fast_weights
    fast = model.new_fast_weights(own.targets, own.rank, CONFIG.seed)
    rows = Rows(model, ids, fast, positions=CONFIG.rollouts.positions)
    adaptation = run_pieces(prepare(rows, fast, CONFIG))
    assert isinstance(adaptation, AdaptationRun)
    reports = []
    for number in range(1, CONFIG.optimizer.steps + 1):
        [outcome] = AdaptStep.run_batch([AdaptStep(adaptation, number)])
        assert isinstance(outcome, StepDone)
        reports.append(outcome.report)
    run_pieces(choose_weights(adaptation, reports, None))
    return _peak()


def _peak() -> int:
    status = Path("/proc/self/status").read_text().splitlines()
    [line] = [line for line in status if line.startswith("VmHWM:")]
    return int(line.split()[1]) * 1024


if __name__ == "__main__":
    tune_runtime()
    sys.stdout.write(json.dumps(peak_of_adaptation(sys.argv[1], int(sys.argv[2]))))
