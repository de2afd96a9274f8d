"""What the results of a run say: scores with intervals, paired differences, seconds, a picture."""

from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from refine_server.benchmarks.common.files import whole_file
from refine_server.benchmarks.quality.answers.bench import Result
from refine_server.benchmarks.report.stats import Interval, Paired, paired, stratified

BASELINE = "none"


class Summary:
    """The results of a run. A document's score is the mean over its questions.

    Only documents that every arm has answered are counted, so that all arms are compared on the
    same ones.
    """

    def __init__(self, results: Sequence[Result], arms: Sequence[str]) -> None:
        self.results, self.arms = results, arms
        scores: dict[tuple[str, str], dict[str, list[float]]] = {}
        for result in results:
            of = scores.setdefault(_document(result), {})
            of.setdefault(result.arm, []).append(result.score)
        self._documents = {
            document: {arm: sum(own) / len(own) for arm, own in of.items()}
            for document, of in scores.items()
            if set(arms) <= of.keys() and len({len(of[arm]) for arm in arms}) == 1
        }
        self.tasks = list(dict.fromkeys(task for task, _ in self._documents))

    @property
    def n(self) -> int:
        """Documents that every arm has answered."""
        return len(self._documents)

    def scores(self, arm: str, task: str | None = None) -> list[float]:
        """Return the scores of an arm, document by document."""
        return [of[arm] for (own, _), of in self._documents.items() if task in (None, own)]

    def score(self, arm: str) -> Interval:
        """Return the mean over tasks; documents are resampled within theirs."""
        return stratified({task: self.scores(arm, task) for task in self.tasks})

    def compared(self, ours: str, theirs: str) -> Paired:
        """Compare two arms document by document."""
        return paired(self.scores(ours), self.scores(theirs))

    def seconds(self, arm: str) -> float:
        """Return the median seconds of an answer about the documents that are counted."""
        own = (r for r in self.results if r.arm == arm and _document(r) in self._documents)
        return median(r.seconds for r in own)

    def figures(self) -> dict[str, Any]:
        """Return all of it for JSON."""
        return {
            "scores": {arm: round(self.score(arm).mean, 2) for arm in self.arms},
            "intervals": {arm: self.score(arm).bounds() for arm in self.arms},
            "differences": {
                arm: str(self.compared(arm, BASELINE).difference)
                for arm in self.arms
                if arm != BASELINE and BASELINE in self.arms
            },
            "seconds": {arm: round(self.seconds(arm), 2) for arm in self.arms},
            "n": self.n,
        }

    def markdown(self, title: str, command: str, about: str) -> str:
        """Write the report."""
        head = [
            "arm",
            *(f"{task} ({len(self.scores(self.arms[0], task))})" for task in self.tasks),
        ]
        lines = [f"## {title}", "", about, "", "```console", command, "```", ""]
        lines += _table(
            [
                *head,
                "mean over tasks",
                f"against {BASELINE}, mean over documents",
                "wins/ties/losses",
                "median seconds",
            ]
        )
        for arm in self.arms:
            means = [sum(s) / len(s) for s in (self.scores(arm, task) for task in self.tasks)]
            against = self.compared(arm, BASELINE if BASELINE in self.arms else arm)
            outcomes = f"{against.wins}/{against.ties}/{against.losses}"
            cells = [arm, *(f"{mean:.1f}" for mean in means), self.score(arm)]
            compared = ["-", "-"] if arm == BASELINE else [against.difference, outcomes]
            lines.append(_row([*cells, *compared, f"{self.seconds(arm):.1f}"]))
        return "\n".join(lines) + "\n"

    def draw(self, path: Path, title: str) -> None:
        """Draw each arm's score against its seconds, with intervals."""
        from matplotlib.figure import Figure

        from refine_server.benchmarks.report.plots import points

        figure = Figure(figsize=(7.5, 4), layout="constrained")
        points(figure, {arm: (self.seconds(arm), self.score(arm)) for arm in self.arms})
        figure.suptitle(f"{title}: score (0 to 100), mean over {len(self.tasks)} tasks")
        with whole_file(path) as partial:
            figure.savefig(partial, dpi=120)


def _document(result: Result) -> tuple[str, str]:
    """Return the task, with its length if documents were made with one, and the document's id."""
    task = f"{result.task} {result.length}" if result.length else result.task
    return task, result.id


def _table(head: Sequence[object]) -> list[str]:
    return [_row(head), _row(["---"] * len(head))]


def _row(cells: Sequence[object]) -> str:
    return "| " + " | ".join(str(cell) for cell in cells) + " |"
