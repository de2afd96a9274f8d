"""How the cost of an adaptation step, a batch and a decoded token grows."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure

from refine_server.benchmarks.common.files import whole_file
from refine_server.benchmarks.common.timing import medians
from refine_server.benchmarks.report.plots import lines
from refine_server.ttt.decoding.decode import DecodeStep
from refine_server.ttt.fast_weights import FastWeights
from refine_server.ttt.interface.config import AdaptConfig, RolloutConfig
from refine_server.ttt.models import load
from refine_server.ttt.refine.inputs.rows import Rows
from refine_server.ttt.refine.inputs.step_inputs import StepInputs
from refine_server.ttt.refine.naive import naive_gradient
from refine_server.ttt.refine.step import AdaptationRun, AdaptStep

Points = Mapping[int, float]
"""Seconds by the value on the x axis."""

TOKENS = 32
"""Tokens that are decoded for one point of a token's cost; the time of a single one is noise."""

MOST_REREAD = 70_000
"""Maximum number of tokens that the naive loop re-reads for one point; more takes too long."""

PANELS = {
    "step_by_tokens": ("A step", "tokens of the document"),
    "step_by_rollouts": ("A step", "rollouts (c · n)"),
    "share_by_requests": ("A request's share of a batch", "requests in the batch"),
    "token_by_tokens": ("A token of an answer", "tokens of the document"),
}
"""Title and x axis of each panel, by the panel's name in the result."""


class CostBench:
    """Measures four curves of one model: a step by T and by c n, a batch by its size, a token by T.

    Documents are random tokens, because the cost does not depend on the content. Everything that a
    curve does not vary stays at c = 8, n = 4, k = 5 and the default targets. Every point is a
    median over ``repeats`` rounds; each round measures all points of the curve in turn.
    """

    def __init__(self, model: str, repeats: int, threads: int | None = None) -> None:
        if threads is not None:
            torch.set_num_threads(threads)
        self.model, self.repeats = load(model), repeats
        self.config = AdaptConfig(rollouts=RolloutConfig(positions=8, per_position=4), guard="none")
        self.generator = torch.Generator().manual_seed(0)

    def run(
        self,
        lengths: Sequence[int],
        rollouts: Sequence[int],
        rollouts_tokens: int,
        batches: Sequence[int],
        batch_tokens: int,
    ) -> dict[str, dict[str, Points]]:
        """Return seconds by panel (``PANELS``), by series and by x.

        Args:
            lengths: document lengths T in tokens.
            rollouts: values of n, at c = 8 and a document of ``rollouts_tokens`` tokens.
            batches: batch sizes in requests, each on a document of ``batch_tokens`` tokens.
        """
        single = self._medians({T: self._tokens(1, T) for T in lengths})
        by_n = {
            self.config.rollouts.positions * n: self.config.updated(rollouts={"per_position": n})
            for n in rollouts
        }
        return {
            "step_by_tokens": self._series({T: (self._ids(T), self.config) for T in lengths}),
            "step_by_rollouts": self._series(
                {cn: (self._ids(rollouts_tokens), config) for cn, config in by_n.items()}
            ),
            "share_by_requests": {
                "step": self._shares({b: self._batch(b, batch_tokens) for b in batches}),
                "token": self._shares({b: self._tokens(b, batch_tokens) for b in batches}, TOKENS),
            },
            "token_by_tokens": {"token": {T: s / TOKENS for T, s in single.items()}},
        }

    def _series(self, at: Mapping[int, tuple[torch.Tensor, AdaptConfig]]) -> dict[str, Points]:
        """Time a step under each objective and by the naive loop."""
        sides: dict[tuple[str, int], Callable[[], object]] = {}
        for x, (ids, config) in at.items():
            for objective in ("ntp", "refine"):
                sides[objective, x] = self._step(ids, config.updated(objective=objective))
            rollouts = config.rollouts.positions * config.rollouts.per_position
            if rollouts * ids.shape[1] // 2 <= MOST_REREAD:
                sides["naive", x] = self._naive(ids, config)
        seconds = self._medians(sides)
        names = ("naive", "refine", "ntp")
        return {n: {x: s for (name, x), s in seconds.items() if name == n} for n in names}

    def _step(self, ids: torch.Tensor, config: AdaptConfig) -> Callable[[], object]:
        step = AdaptStep(self._run(ids, config), 1)
        return lambda: AdaptStep.run_batch([step])

    def _naive(self, ids: torch.Tensor, config: AdaptConfig) -> Callable[[], object]:
        fast = self._fast()
        rows = Rows(self.model, ids, fast, positions=config.rollouts.positions)
        inputs = StepInputs.of(rows, fast, config)
        return lambda: naive_gradient(inputs)

    def _batch(self, requests: int, tokens: int) -> Callable[[], object]:
        runs = [self._run(self._ids(tokens), self.config) for _ in range(requests)]
        return lambda: AdaptStep.run_batch([AdaptStep(run, 1) for run in runs])

    def _tokens(self, requests: int, tokens: int) -> Callable[[], object]:
        """Decode ``TOKENS`` tokens for each request, from states after documents of T tokens."""
        fasts = [self._fast() for _ in range(requests)]
        with torch.no_grad():
            states = [self.model(self._ids(tokens), None, fast).state for fast in fasts]
        pairs = list(zip(states, fasts, strict=True))

        def decode() -> None:
            for _ in range(TOKENS):
                DecodeStep.run_batch([DecodeStep(self.model, 7, *pair) for pair in pairs])

        return decode

    def _run(self, ids: torch.Tensor, config: AdaptConfig) -> AdaptationRun:
        fast = self._fast()
        rows = Rows(self.model, ids, fast, positions=config.rollouts.positions)
        return AdaptationRun.of(rows, fast, config)

    def _fast(self) -> FastWeights:
        return self.model.new_fast_weights(
            self.config.fast_weights.targets, self.config.fast_weights.rank, self.config.seed
        )

    def _ids(self, tokens: int) -> torch.Tensor:
        vocabulary = self.model.lm_head.weight.shape[0]
        return torch.randint(0, vocabulary, (1, tokens), generator=self.generator)

    def _medians(self, sides: Mapping[Any, Callable[[], object]]) -> dict[Any, float]:
        return medians(sides, self.repeats)

    def _shares(self, sides: Mapping[int, Callable[[], object]], parts: int = 1) -> Points:
        """Return the seconds per request of a batch by its size, divided by ``parts``."""
        found = self._medians(sides)
        return {size: seconds / (size * parts) for size, seconds in found.items()}


def draw(panels: Mapping[str, Mapping[str, Points]], out: Path, title: str) -> None:
    """Plot all panels in one figure, both axes logarithmic."""
    figure = Figure(figsize=(11, 8), dpi=140, layout="constrained")
    lines(figure, {PANELS[name]: series for name, series in panels.items()}, "seconds")
    figure.suptitle(title)
    with whole_file(out) as partial:
        figure.savefig(partial)
