"""One replay, from its questions to its report."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from refine_server.benchmarks.common.rows import DataError
from refine_server.benchmarks.quality.replay.folder import RunFolder
from refine_server.benchmarks.quality.replay.questions import Question
from refine_server.benchmarks.quality.replay.report import AVERAGE, Results, replay_report
from refine_server.benchmarks.quality.replay.runner import Replay
from refine_server.benchmarks.report.manifest import Manifest, effective
from refine_server.clients import RefineClient
from refine_server.clients.options import AdaptOptions


@dataclass(frozen=True)
class ReplayBench:
    """Asks a benchmark's questions under several objectives and writes a report."""

    kind: str
    """Name of the benchmark, a key of ``replayed.TITLES``."""
    url: str
    """URL of the server."""
    out: Path
    """Folder for predictions and reports."""
    objectives: Sequence[str]
    """Objectives to ask under."""
    adapt: AdaptOptions
    """Adaptation settings that all objectives share."""
    settings: dict[str, Any]
    """Everything else that the results depend on; a resumed run must have the same."""
    concurrency: int = 1
    resume: bool = False

    def run(self, client: RefineClient, asked: Iterable[Question]) -> dict[str, Any]:
        """Ask the questions that have no answer yet, write the report, return its main figures.

        Raises:
            DataError: there is no question, or two rows of a task have the same id.
        """
        questions = list(asked)  # before the folder is made, because a row may be refused
        if not questions:
            raise DataError("--data: there is no question")
        if len({(q.task, q.id) for q in questions}) < len(questions):
            raise DataError("--data: two rows of a task have the same id")
        settings = {**self.settings, "objectives": list(self.objectives)}
        settings["adapt"] = effective(self.adapt, client)
        manifest = Manifest.now(self.kind, settings, client)
        folder = RunFolder.make(self.out, manifest, self.resume)
        Replay(self.url, questions, self.objectives, self.adapt, self.concurrency).run(folder)
        return write_report(folder)


def write_report(folder: RunFolder) -> dict[str, Any]:
    """Write the report of a run's answers so far; return its main figures."""
    manifest, failed = folder.manifest, folder.unanswered()
    first = next((f"{' '.join(key)}: {reason}" for key, reason in failed.items()), None)
    answers = folder.results()
    results = Results(answers, manifest.settings["objectives"], folder.lengths())
    report = replay_report(manifest, results, len(failed), first, folder.ended())
    written = report.write(folder.path / "report")
    scores = report.data.get("scores", {})
    return {
        "questions": len(results.whole),
        "requests": len(answers) + len(failed),
        "errors": len(failed),
        "first_error": first,
        "average": {o: round(of[AVERAGE]["mean"], 2) for o, of in scores.items()},
        "scores": {
            o: {t: round(i["mean"], 2) for t, i in of.items() if t != AVERAGE}
            for o, of in scores.items()
        },
        "report": str(next(path for path in written if path.suffix == ".html")),
    }
