"""The folder of a run: its settings, its answers and its reports.

``run.json`` describes the run, ``predictions.jsonl`` has a line for each answer and grows during
the run, ``errors.jsonl`` has a line for each request that failed. Predictions and errors may quote
the data set; the reports do not.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from refine_server.benchmarks.common.files import write_text
from refine_server.benchmarks.common.rows import DataError, read_rows
from refine_server.benchmarks.quality.replay.questions import Key, Question, Result
from refine_server.benchmarks.report.manifest import Manifest


class RunFolder:
    """Stores a run's answers as they come."""

    def __init__(self, path: Path, manifest: Manifest) -> None:
        self.path = path
        self.manifest = manifest

    @classmethod
    def make(cls, path: Path, manifest: Manifest, resume: bool) -> "RunFolder":
        """Make the folder of a new run or, with ``resume``, open that of an existing one.

        Raises:
            DataError: the folder has another run, or a run with other settings.
        """
        path.mkdir(parents=True, exist_ok=True)
        described = path / "run.json"
        if not described.exists():
            write_text(described, json.dumps(asdict(manifest), indent=1, ensure_ascii=False) + "\n")
            return cls(path, manifest)
        if not resume:
            raise DataError(
                f"--out: {path} has a run; continue it with --resume, or choose another folder"
            )
        folder = cls.open(path)
        _require_same(folder, manifest)
        return folder

    @classmethod
    def open(cls, path: Path) -> "RunFolder":
        """Open the folder of an existing run.

        Raises:
            DataError: there is none.
        """
        described = path / "run.json"
        try:
            return cls(path, Manifest(**json.loads(described.read_text("utf-8"))))
        except OSError as error:
            raise DataError(f"cannot read {described}: {error.strerror}") from None
        except (ValueError, TypeError) as error:
            raise DataError(f"{described} is not the description of a run: {error}") from None

    def results(self) -> list[Result]:
        """Return all answers so far."""
        path = self.path / "predictions.jsonl"
        return list(read_rows(path, Result.parse)) if path.exists() else []

    def done(self) -> set[Key]:
        """Return the keys of all answers so far."""
        return {result.key for result in self.results()}

    def unanswered(self) -> dict[Key, str]:
        """Return why each request failed that has no answer yet, the first failure first."""
        path, done = self.path / "errors.jsonl", self.done()
        lines = read_rows(path, dict) if path.exists() else iter(())
        failed: dict[Key, str] = {}
        for line in lines:
            if (key := _key(line)) not in done:
                failed.setdefault(key, line["error"])
        return failed

    def lengths(self) -> dict[tuple[str, str], int]:
        """Return the context length in words of each question, where the data set has it."""
        path = self.path / "predictions.jsonl"
        lines = read_rows(path, dict) if path.exists() else iter(())
        return {(x["task"], x["id"]): x["length"] for x in lines if "length" in x}

    def ended(self) -> str:
        """Return the time of the last answer."""
        path = self.path / "predictions.jsonl"
        if not path.exists():
            return "no answer yet"
        at = datetime.fromtimestamp(path.stat().st_mtime, UTC)
        return at.isoformat(timespec="seconds")

    def keep(self, question: Question, prediction: str, result: Result) -> None:
        """Append one answer."""
        self._append("predictions.jsonl", result.line(question, prediction))

    def keep_error(self, question: Question, objective: str, error: Exception) -> None:
        """Append a failed request; a resumed run asks it again."""
        line = {"dataset": question.task, "id": question.id, "objective": objective}
        self._append("errors.jsonl", {**line, "error": str(error), "type": type(error).__name__})

    def _append(self, name: str, line: dict[str, Any]) -> None:
        # An unpaired surrogate cannot be encoded in UTF-8; it is replaced by JSON's escape.
        with (self.path / name).open("a", encoding="utf-8", errors="backslashreplace") as file:
            file.write(json.dumps(line, ensure_ascii=False) + "\n")


def _key(line: Mapping[str, Any]) -> Key:
    return line["dataset"], line["id"], line["objective"]


def _require_same(folder: RunFolder, manifest: Manifest) -> None:
    before, now = asdict(folder.manifest), json.loads(json.dumps(asdict(manifest)))
    for name in ("kind", "model", "settings"):
        if before[name] != now[name]:
            was = before[name]
            changed = was if name == "kind" else _differences(was, now[name])
            raise DataError(f"--resume: the run in {folder.path} differs in its {name}: {changed}")


def _differences(was: dict[str, Any], is_now: dict[str, Any]) -> str:
    names = sorted(n for n in was.keys() | is_now.keys() if was.get(n) != is_now.get(n))
    return "; ".join(f"{n} was {was.get(n)!r}, is {is_now.get(n)!r}" for n in names)
