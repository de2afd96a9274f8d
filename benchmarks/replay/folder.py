"""The folder of a run: what was asked, what was answered, and the reports.

``run.json`` describes the run, ``predictions.jsonl`` has a line for each answer and grows while the
run goes on, ``errors.jsonl`` a line for each question that brought none. Predictions and errors may
quote the data set; the reports, written beside them, do not.
"""

import json
import platform
import sys
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from refine_server.benchmarks.replay.questions import Key, Question, Result
from refine_server.benchmarks.rows import DataError, read_rows
from refine_server.clients import RefineClient

PACKAGES = ("refine-server", "httpx", "numpy")


@dataclass(frozen=True)
class Manifest:
    """What a run is. ``settings`` decide its results: a run resumes only under the same ones."""

    kind: str
    settings: dict[str, Any]
    model: dict[str, Any]
    server: str
    command: str
    started: str
    client: dict[str, str] = field(default_factory=dict)

    @classmethod
    def now(cls, kind: str, settings: dict[str, Any], client: RefineClient) -> "Manifest":
        """Of a run that starts now, against the server that a client asks."""
        return cls(
            kind=kind,
            settings=settings,
            model=client.models()[0].model_dump(exclude={"created", "object", "owned_by"}),
            server=client.version().version,
            command=" ".join(["refine-server", *sys.argv[1:]]),
            started=datetime.now(UTC).isoformat(timespec="seconds"),
            client={
                "python": platform.python_version(),
                "machine": platform.machine(),
                **{name: version(name) for name in PACKAGES},
            },
        )


class RunFolder:
    """Keeps a run's answers as they come.

    Args:
        path: of the folder; it is made.
        manifest: of the run.
        resume: go on with the run that is there, if there is one.

    Raises:
        DataError: another run is there, or one under other settings.
    """

    def __init__(self, path: Path, manifest: Manifest, resume: bool) -> None:
        self.path = path
        self.manifest = manifest
        path.mkdir(parents=True, exist_ok=True)
        described = path / "run.json"
        if described.exists():
            if not resume:
                raise DataError(f"--out: {path} holds a run; --resume goes on with it")
            self.manifest = self._same(described)
        else:
            described.write_text(json.dumps(asdict(manifest), indent=1, ensure_ascii=False) + "\n")

    def results(self) -> list[Result]:
        """All answers so far."""
        path = self.path / "predictions.jsonl"
        return list(read_rows(path, Result.parse)) if path.exists() else []

    def done(self) -> set[Key]:
        """What has been answered."""
        return {result.key for result in self.results()}

    def keep(self, question: Question, prediction: str, result: Result) -> None:
        """Write one answer down."""
        self._append("predictions.jsonl", result.line(question, prediction))

    def keep_error(self, question: Question, objective: str, error: Exception) -> None:
        """Write down that a question brought no answer; a resumed run asks it again."""
        line = {"dataset": question.task, "id": question.id, "objective": objective}
        self._append("errors.jsonl", {**line, "error": str(error), "type": type(error).__name__})

    def _append(self, name: str, line: dict[str, Any]) -> None:
        with (self.path / name).open("a", encoding="utf-8") as file:
            file.write(json.dumps(line, ensure_ascii=False) + "\n")

    def _same(self, described: Path) -> Manifest:
        try:
            before = Manifest(**json.loads(described.read_text()))
        except (ValueError, TypeError) as error:
            raise DataError(f"{described} describes no run: {error}") from None
        now = asdict(self.manifest)
        for name in ("kind", "model", "settings"):
            was, is_now = asdict(before)[name], json.loads(json.dumps(now[name]))
            if was != is_now:
                changed = was if name == "kind" else _differences(was, is_now)
                raise DataError(f"--resume: the run in {self.path} has another {name}: {changed}")
        return before


def _differences(was: dict[str, Any], is_now: dict[str, Any]) -> str:
    names = sorted(n for n in was.keys() | is_now.keys() if was.get(n) != is_now.get(n))
    return "; ".join(f"{n} was {was.get(n)!r}, is {is_now.get(n)!r}" for n in names)
