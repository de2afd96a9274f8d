"""The report of a run: scores with intervals, paired differences, seconds and a plot."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from refine_server.benchmarks.common.files import whole_file
from refine_server.benchmarks.quality.regimes.bench import OBJECTIVES, Result
from refine_server.benchmarks.quality.regimes.contexts import Regime
from refine_server.benchmarks.report.stats import Interval, Paired, interval, paired, stratified

PAIRS = (("ntp", "none"), ("refine", "none"), ("refine", "ntp"))

Cell = tuple[str, int]
"""Task and length."""


class Summary:
    """A run's results by regime, cell and objective, one for each document.

    Only documents that have a result under every objective are counted.
    """

    def __init__(self, results: Sequence[Result], regimes: Sequence[Regime]) -> None:
        measured = Counter((r.task, r.length, r.id) for r in results)
        results = [r for r in results if measured[r.task, r.length, r.id] == len(OBJECTIVES)]
        self.results, self.regimes = results, regimes
        self.cells: list[Cell] = list(dict.fromkeys((r.task, r.length) for r in results))

    def scores(self, regime: str, objective: str, cell: Cell) -> list[float]:
        """Return the scores of a cell's documents, in order."""
        return [
            r.scores[regime]
            for r in self.results
            if (r.task, r.length) == cell and r.objective == objective
        ]

    def score(self, regime: str, objective: str) -> Interval:
        """Return the mean over cells; documents are resampled within their cells."""
        return stratified({str(c): self.scores(regime, objective, c) for c in self.cells})

    def compared(self, regime: str, ours: str, theirs: str) -> Paired:
        """Compare two objectives on the same documents."""
        a, b = (
            [x for cell in self.cells for x in self.scores(regime, name, cell)]
            for name in (ours, theirs)
        )
        return paired(a, b)

    def figures(self) -> dict[str, Any]:
        """Return everything as JSON; ``scores`` and ``intervals`` are the first regime's."""
        by_regime = {
            regime: {o: self.score(regime, o) for o in OBJECTIVES} for regime in self.regimes
        }
        first = by_regime[self.regimes[0]]
        return {
            "scores": {o: round(i.mean, 2) for o, i in first.items()},
            "intervals": {o: i.bounds() for o, i in first.items()},
            "n": first["none"].n,
            "regimes": {
                regime: {o: [round(i.mean, 2), *i.bounds()] for o, i in of.items()}
                for regime, of in by_regime.items()
            },
            "differences": {
                regime: {f"{a}-{b}": str(self.compared(regime, a, b).difference) for a, b in PAIRS}
                for regime in self.regimes
            },
            "kept_base": {o: self._kept(o) for o in OBJECTIVES[1:]},
            "adapt_seconds": {
                o: round(median(r.adapt_seconds for r in self.results if r.objective == o), 2)
                for o in OBJECTIVES
            },
        }

    def _kept(self, objective: str) -> int:
        return sum(r.objective == objective and r.accepted_step == 0 for r in self.results)

    def markdown(self, title: str, command: str, about: str) -> str:
        """Return the report as Markdown."""
        lines = [f"## {title}", "", about, "", "```console", command, "```", ""]
        lines += [*self._scores_table(), "", *self._pairs_table(), "", *self._costs_table()]
        return "\n".join(lines) + "\n"

    def _scores_table(self) -> list[str]:
        lines = _header("regime", "task", "length", "n", *OBJECTIVES)
        for regime in self.regimes:
            for cell in self.cells:
                of = [interval(self.scores(regime, o, cell)) for o in OBJECTIVES]
                lines.append(_row(regime, cell[0], cell[1] or "as is", of[0].n, *of))
            means = [self.score(regime, o) for o in OBJECTIVES]
            lines.append(_row(regime, "**mean**", "", means[0].n, *means))
        return lines

    def _pairs_table(self) -> list[str]:
        lines = _header("regime", "pair", "wins", "ties", "losses", "difference")
        for regime in self.regimes:
            for a, b in PAIRS:
                p = self.compared(regime, a, b)
                lines.append(_row(regime, f"{a} - {b}", p.wins, p.ties, p.losses, p.difference))
        return lines

    def _costs_table(self) -> list[str]:
        answers = [f"answers, {regime} (s)" for regime in self.regimes]
        lines = _header("objective", "base kept", "adapt (s)", *answers, "peak (MiB)")
        for objective in OBJECTIVES:
            of = [r for r in self.results if r.objective == objective]
            seconds = [median(r.answer_seconds[regime] for r in of) for regime in self.regimes]
            lines.append(
                _row(
                    objective,
                    f"{self._kept(objective)} of {len(of)}" if objective != "none" else "-",
                    f"{median(r.adapt_seconds for r in of):.1f}",
                    *(f"{s:.1f}" for s in seconds),
                    f"{max(r.peak_bytes for r in of) / 2**20:.0f}",
                )
            )
        return lines

    def draw(self, path: Path, title: str) -> None:
        """Plot mean scores by regime and objective, with intervals."""
        from matplotlib.figure import Figure

        from refine_server.benchmarks.report.plots import bars

        figure = Figure(figsize=(7.5, 4), layout="constrained")
        series = {str(o): [self.score(regime, o) for regime in self.regimes] for o in OBJECTIVES}
        bars(figure, list(self.regimes), series, "score (0 to 100)")
        figure.suptitle(f"{title}: mean over tasks and lengths")
        with whole_file(path) as partial:
            figure.savefig(partial, dpi=120)


def _header(*cells: str) -> list[str]:
    return [_row(*cells), _row(*("---" for _ in cells))]


def _row(*cells: object) -> str:
    return "| " + " | ".join(str(cell) for cell in cells) + " |"
