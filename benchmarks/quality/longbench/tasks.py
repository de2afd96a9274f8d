"""LongBench's 21 tasks, as described in ``tasks.toml``."""

import tomllib
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

EXTENDED_SUFFIX = "_e"
"""Suffix of LongBench-E's data sets, e.g. ``qasper_e``."""


@dataclass(frozen=True)
class Task:
    """One task: its prompt and its metric."""

    name: str
    group: str
    language: str
    metric: str
    max_tokens: int
    first_line: bool
    extended: bool
    prompt: str

    @property
    def before(self) -> str:
        """The prompt before the context."""
        return self.prompt.partition("{context}")[0]

    def after(self, question: str) -> str:
        """Return the prompt after the context."""
        return self.prompt.partition("{context}")[2].replace("{input}", question)


@cache
def tasks() -> dict[str, Task]:
    """Return all tasks by name."""
    text = (
        files("refine_server.benchmarks.quality.longbench")
        .joinpath("tasks.toml")
        .read_text("utf-8")
    )
    return {name: Task(name, **fields) for name, fields in tomllib.loads(text).items()}


def task_of(dataset: str) -> Task:
    """Return the task of a row's ``dataset``; LongBench-E's names are accepted.

    Raises:
        ValueError: there is no such task.
    """
    known = tasks()
    name = dataset if dataset in known else dataset.removesuffix(EXTENDED_SUFFIX)
    if name not in known:
        raise ValueError(
            f"dataset: {dataset!r} is not a LongBench task; the tasks are {', '.join(known)}"
        )
    return known[name]
