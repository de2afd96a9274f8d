"""Time and memory of a step on evidence, over a document's frozen state, by document length."""

import ctypes
import gc
import re
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from refine_server.ttt.interface.config import AdaptConfig
from refine_server.ttt.models import load
from refine_server.ttt.query_side import adapt
from refine_server.ttt.query_side.frozen_document import FrozenDocument
from refine_server.ttt.refine.inputs.rows import Rows, Span
from refine_server.ttt.refine.step import AdaptationRun, AdaptStep, StepDone

KIB = 1024
QUESTION_TOKENS = 16


class EvidenceStepBench:
    """Times steps on spans of a frozen document, and beside them steps on the whole document.

    Both sides have the default rollouts and loss. A step is loss, gradient, clipping and optimiser
    update; reading the document, once for all steps, is not part of it. The document is random
    tokens, because the cost does not depend on the content, and the spans are spread evenly.
    """

    def __init__(
        self, model: str, spans: int, span_tokens: int, threads: int | None = None
    ) -> None:
        if threads is not None:
            torch.set_num_threads(threads)
        self.model = load(model)
        self.spans, self.span_tokens = spans, span_tokens
        self.on_document = AdaptConfig(guard="none")
        self.on_evidence = self.on_document.updated(on={"kind": "evidence"})

    def run(
        self, lengths: Sequence[int], repeats: int, document_repeats: int | None = None
    ) -> dict[str, Any]:
        """Return medians over rounds and, at each of some document lengths, both sides' figures.

        Args:
            lengths: of documents, in tokens, in ascending order.
            repeats: rounds of the side on evidence, after one that is not counted.
            document_repeats: rounds of the side on the document; None: as many.
        """
        document_repeats = repeats if document_repeats is None else document_repeats
        rows = [self._at(length, repeats, document_repeats) for length in lengths]
        return {
            "model": self.model.name,
            "spans": self.spans,
            "span_tokens": self.span_tokens,
            "repeats": repeats,
            "document_repeats": document_repeats,
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "ratio_longest_to_shortest": rows[-1]["cpu_seconds"] / rows[0]["cpu_seconds"],
            "lengths": rows,
        }

    def _at(self, length: int, repeats: int, document_repeats: int) -> dict[str, float]:
        generator = torch.Generator().manual_seed(0)
        vocabulary = self.model.lm_head.weight.shape[0]
        ids = torch.randint(0, vocabulary, (1, length), generator=generator)
        row: dict[str, float] = {"document_tokens": length}
        row |= _figures(_step(self._evidence_run(ids)), repeats, warm_up=1)
        if document_repeats:
            whole = _figures(_step(self._document_run(ids)), document_repeats, warm_up=0)
            row |= {f"document_{name}": value for name, value in whole.items()}
            row["speedup"] = whole["cpu_seconds"] / row["cpu_seconds"]
        return row

    def _evidence_run(self, ids: torch.Tensor) -> AdaptationRun:
        document = FrozenDocument.read(self.model, ids)
        chunk = ids.shape[1] // self.spans
        starts = [i * chunk + (chunk - self.span_tokens) // 2 for i in range(self.spans)]
        evidence = [Span(start, start + self.span_tokens) for start in starts]
        weights = self.on_evidence.fast_weights
        fast = self.model.new_fast_weights(weights.targets, weights.rank, self.on_evidence.seed)
        aim = adapt.Aim(evidence=evidence, question=ids[0, :QUESTION_TOKENS].tolist())
        spans = adapt.equal_spans(evidence, ids.shape[1], self.on_evidence.rollouts.tokens)
        return adapt.prepare(document, fast, self.on_evidence, [aim], spans)

    def _document_run(self, ids: torch.Tensor) -> AdaptationRun:
        weights = self.on_document.fast_weights
        fast = self.model.new_fast_weights(weights.targets, weights.rank, self.on_document.seed)
        rows = Rows(self.model, ids, fast, positions=self.on_document.rollouts.positions)
        return AdaptationRun.of(rows, fast, self.on_document)


def _step(run: AdaptationRun) -> Callable[[], None]:
    def make() -> None:
        [outcome] = AdaptStep.run_batch([AdaptStep(run, 1)])
        assert isinstance(outcome, StepDone), outcome

    return make


def _figures(step: Callable[[], None], repeats: int, warm_up: int) -> dict[str, float]:
    """Return medians of a step's seconds and CPU seconds, and its memory beyond what is held.

    The memory is that of the first round.
    """
    held = _reset_peak()
    measured = []
    for turn in range(warm_up + repeats):
        started = time.perf_counter(), time.process_time()
        step()
        ended = time.perf_counter(), time.process_time()
        measured.append((ended[0] - started[0], ended[1] - started[1]))
        if turn == 0:
            peak = _status("VmHWM")
    wall, cpu = map(statistics.median, zip(*measured[warm_up:], strict=True))
    return {"seconds": wall, "cpu_seconds": cpu, "step_bytes": peak - held}


def _reset_peak() -> int:
    """Make the present memory of this process its peak (Linux), and return it in bytes."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # what is free would be used by the step without being counted
    Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def _status(name: str) -> int:
    found = re.search(rf"^{name}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.M)
    assert found is not None, name
    return int(found[1]) * KIB
