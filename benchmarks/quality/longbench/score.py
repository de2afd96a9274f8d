"""Official LongBench scores of predictions, from 0 to 100."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from refine_server.benchmarks.common.rows import DataError, read_rows
from refine_server.benchmarks.quality.longbench.data import BUCKETS, bucket, strings
from refine_server.benchmarks.quality.longbench.metrics import METRICS
from refine_server.benchmarks.quality.longbench.tasks import Task, task_of


def score(task: Task, prediction: str, answers: Sequence[str], classes: Sequence[str]) -> float:
    """Return the score of one prediction: the best over the answers, 0 to 100."""
    text = prediction.lstrip("\n").split("\n")[0] if task.first_line else prediction
    metric = METRICS[task.metric]
    return 100 * max(metric(text, answer, classes) for answer in answers)


@dataclass(frozen=True)
class Scored:
    """The score of one row of a predictions file; None for what the row does not have."""

    task: str
    score: float
    length: int | None
    objective: str | None

    @classmethod
    def parse(cls, row: Mapping[str, Any]) -> "Scored":
        """Parse a row ``{dataset, prediction or pred, answers, all_classes}``."""
        task = task_of(row["dataset"])
        prediction = row["pred"] if "pred" in row else row["prediction"]
        if not isinstance(prediction, str):
            raise ValueError("prediction: must be a string")
        classes = strings(row, "all_classes")
        if task.metric == "classification" and not classes:
            raise ValueError(f"all_classes: {task.name} needs the names of its classes")
        length = row.get("length")
        points = score(task, prediction, strings(row, "answers"), classes)
        return cls(task.name, points, None if length is None else int(length), row.get("objective"))


def score_file(path: Path) -> dict[str, Any]:
    """Score all rows of a file; return the scores and their means.

    Where rows have an ``objective``, as those of ``bench longbench`` do, each objective has scores
    of its own under ``objectives``: a mean over several would be that of no method.

    Raises:
        DataError: the file or one of its rows cannot be scored, or only some of them have an
            objective.
    """
    rows = list(read_rows(path, Scored.parse))
    if not rows:
        raise DataError(f"{path} has no rows")
    objectives = list(dict.fromkeys(row.objective for row in rows))
    if objectives == [None]:
        return scores_of(rows)
    if None in objectives:
        raise DataError(f"{path}: some rows have an objective and others have none")
    return {"objectives": {o: scores_of([r for r in rows if r.objective == o]) for o in objectives}}


def scores_of(rows: Sequence[Scored]) -> dict[str, Any]:
    """Return the scores of the rows, in order, and their means.

    ``average`` is the mean over rows, ``task_average`` the mean over tasks as in LongBench's
    tables, and ``buckets`` (rows with a ``length``) has the means that LongBench-E reports.
    """
    by_task = means((row.task, row.score) for row in rows)
    return {
        "rows": [round(row.score, 2) for row in rows],
        "average": round(fmean(row.score for row in rows), 2),
        "tasks": by_task,
        "task_average": round(fmean(by_task.values()), 2),
        "buckets": _by_bucket(rows),
    }


def means(scores: Iterable[tuple[str, float]]) -> dict[str, float]:
    """Return the mean score for each name, rounded as in the official tables."""
    of = defaultdict[str, list[float]](list)
    for name, value in scores:
        of[name].append(value)
    return {name: round(fmean(values), 2) for name, values in of.items()}


def _by_bucket(rows: Iterable[Scored]) -> dict[str, dict[str, float]]:
    of = defaultdict[str, list[tuple[str, float]]](list)
    for row in rows:
        if row.length is not None:
            of[row.task].append((bucket(row.length), row.score))
    found = {task: means(scores) for task, scores in of.items()}
    return {task: {b: of[b] for b in BUCKETS if b in of} for task, of in found.items()}
