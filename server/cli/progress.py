"""Following one answer on a terminal: progress on stderr, answers on stdout."""

import json
from collections.abc import Iterable
from contextlib import nullcontext
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn

WireEvents = Iterable[tuple[str, dict[str, Any]]]
"""Names and data of a stream's events, whether they came over HTTP or not."""


class Follower:
    """Shows a stream of events and keeps its last, the whole response.

    Args:
        steps: how many adaptation steps were asked for.
        as_json: keep stdout for one JSON object.
    """

    def __init__(self, steps: int, as_json: bool = False) -> None:
        self.steps = steps
        self.as_json = as_json
        self.stderr = Console(stderr=True)

    def follow(self, events: WireEvents) -> dict[str, Any]:
        """Show all events; return the data of the last one."""
        response: dict[str, Any] = {}
        progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[numbers]}"),
            console=self.stderr,
            transient=True,
            redirect_stdout=False,  # it would send answers to stderr
        )
        with progress if self.stderr.is_terminal else nullcontext():
            task = progress.add_task("reading", total=self.steps or None, numbers="")
            for name, data in events:
                if name == "adaptation.step":
                    self._step(progress, task, data)
                elif name == "answer.base":
                    self._base(progress, data["text"])
                elif name == "answer.delta":
                    progress.update(task, description="answering")
                elif name in ("answer.completed", "adaptation.ready"):
                    response = data
        self._completed(response)
        return response

    def _step(self, progress: Progress, task: TaskID, step: dict[str, Any]) -> None:
        numbers = (
            f"loss {_number(step['loss'])}  reward {_number(step['reward_mean'])}  "
            f"{step['seconds']:.2f} s"
        )
        progress.update(task, description="adapting", completed=step["step"], numbers=numbers)
        if not self.stderr.is_terminal:
            line = f"step {step['step']}/{self.steps}  {numbers}"
            self.stderr.print(line, markup=False, highlight=False, soft_wrap=True)

    def _base(self, progress: Progress, text: str) -> None:
        if self.as_json:
            return
        progress.stop()  # else the bar is drawn over the text
        print(f"base: {text.strip()}", flush=True)
        if self.stderr.is_terminal:
            progress.start()

    def _completed(self, response: dict[str, Any]) -> None:
        if self.as_json:
            print(json.dumps(response))
            return
        if response["object"] == "adaptation":
            print(response["id"])
            return
        print(response["answer"].strip())
        adaptation, timings = response["adaptation"], response["timings"]
        summary = (
            f"{adaptation['accepted_step']} of {len(adaptation['steps'])} steps used, adapted in "
            f"{timings['adapt_seconds']:.1f} s, decoded in {timings['decode_seconds']:.1f} s"
        )
        if adaptation["guard"] is not None:
            summary += f" (guard: {adaptation['guard']})"
        self.stderr.print(summary, markup=False, highlight=False, soft_wrap=True)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
