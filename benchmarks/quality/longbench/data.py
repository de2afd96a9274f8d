"""Rows of LongBench and LongBench-E in their official format, from JSON lines or parquet."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from refine_server.benchmarks.common.rows import DataError, read_rows
from refine_server.benchmarks.quality.longbench.tasks import EXTENDED_SUFFIX, Task, task_of, tasks

BUCKETS = ("0-4k", "4-8k", "8k+")


@dataclass(frozen=True)
class Row:
    """One question. ``length`` is the context's length in words (Chinese: characters)."""

    id: str
    task: Task
    context: str
    question: str
    answers: tuple[str, ...]
    classes: tuple[str, ...]
    length: int

    @classmethod
    def parse(cls, row: Mapping[str, Any]) -> "Row":
        """Parse a row as published: ``input``, ``context``, ``answers``, ``dataset``, …"""
        return cls(
            id=str(row["_id"]),
            task=task_of(row["dataset"]),
            context=row["context"],
            question=row["input"],
            answers=strings(row, "answers"),
            classes=strings(row, "all_classes"),
            length=int(row["length"]),
        )


def strings(row: Mapping[str, Any], field: str) -> tuple[str, ...]:
    """Return a field that is a list of strings, or null for an empty list.

    Raises:
        ValueError: the field has another type, or ``answers`` is empty.
    """
    value = row.get(field) if field == "all_classes" else row[field]
    if value is None and field == "all_classes":
        return ()
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise ValueError(f"{field}: must be a list of strings")
    if field == "answers" and not value:
        raise ValueError("answers: must have at least one answer")
    return tuple(value)


def bucket(length: int) -> str:
    """Return LongBench-E's length class for a length in words."""
    return BUCKETS[0] if length < 4000 else BUCKETS[1] if length < 8000 else BUCKETS[2]


def load(folder: Path, names: Sequence[str], limit: int | None = None) -> list[Row]:
    """Load the first ``limit`` rows of each task.

    Args:
        folder: folder with ``<task>.jsonl``, ``<task>.parquet`` or the shards ``<task>/*.parquet``,
            as published; LongBench-E's files end in ``_e``.
        names: names of the tasks; empty means every task that the folder has.
        limit: maximum number of rows of a task; None means all.

    Raises:
        DataError: a task is unknown or has no file, or a row has another format.
    """
    if not folder.is_dir():
        raise DataError(f"--data: {folder} is not a folder")
    rows: list[Row] = []
    for name in names or _there(folder):
        found = _rows(folder, name)
        rows += found[:limit]
    return rows


def _there(folder: Path) -> list[str]:
    names = [n for task in tasks() for n in (task, task + EXTENDED_SUFFIX) if _files(folder, n)]
    if not names:
        raise DataError(f"--data: {folder} has no file of a LongBench task")
    return names


def _files(folder: Path, name: str) -> list[Path]:
    single = [folder / f"{name}{suffix}" for suffix in (".jsonl", ".parquet")]
    there = [path for path in single if path.is_file()]
    return there[:1] or sorted((folder / name).glob("*.parquet"))


def _rows(folder: Path, name: str) -> list[Row]:
    try:
        task_of(name)
    except ValueError as error:
        raise DataError(f"--tasks: {error}") from None
    paths = _files(folder, name)
    if not paths:
        raise DataError(f"--tasks: {folder} has neither {name}.jsonl nor {name}.parquet")
    return [row for path in paths for row in read_rows(path, Row.parse)]
