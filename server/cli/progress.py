"""Show a stream of events on a terminal: progress on stderr, answers on stdout."""

import json
from collections.abc import Iterable
from contextlib import nullcontext
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn

WireEvent = tuple[str, dict[str, Any]]
"""Name and data of a stream's event, whether it came over HTTP or not."""


MAX_CITED = 100
"""Characters of a citation that are shown."""


class Follower:
    """Shows a stream of events and returns the data of its last event, the whole response.

    Args:
        steps: number of adaptation steps that were requested.
        as_json: print the response as one JSON object, and nothing else on stdout.
    """

    def __init__(self, steps: int, as_json: bool = False) -> None:
        self.steps = steps
        self.as_json = as_json
        self.stderr = Console(stderr=True)

    def follow(self, events: Iterable[WireEvent]) -> dict[str, Any]:
        """Show all events; return the data of the last one."""
        response: dict[str, Any] = {}
        progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[measured]}"),
            console=self.stderr,
            transient=True,
            redirect_stdout=False,  # otherwise answers would go to stderr
        )
        with progress if self.stderr.is_terminal else nullcontext():
            task = progress.add_task("reading", total=self.steps or None, measured="")
            for name, data in events:
                match name:
                    case "adaptation.step":
                        self._show_step(progress, task, data)
                    case "answer.base":
                        self._print_base_answer(progress, data["text"])
                    case "answer.delta":
                        progress.update(task, description="answering")
                    case "answer.completed" | "adaptation.ready":
                        response = data
        self._print_response(response)
        return response

    def _show_step(self, progress: Progress, task: TaskID, step: dict[str, Any]) -> None:
        measured = (
            f"loss {_format(step['loss'])}  reward {_format(step['reward_mean'])}  "
            f"{step['seconds']:.2f} s"
        )
        progress.update(task, description="adapting", completed=step["step"], measured=measured)
        if not self.stderr.is_terminal:
            self._print_line(f"step {step['step']}/{self.steps}  {measured}")

    def _print_base_answer(self, progress: Progress, text: str) -> None:
        if self.as_json:
            return
        progress.stop()  # otherwise the bar is drawn over the text
        print(f"base: {text.strip()}", flush=True)
        if self.stderr.is_terminal:
            progress.start()

    def _print_response(self, response: dict[str, Any]) -> None:
        if self.as_json:
            print(json.dumps(response))
        elif response["object"] == "adaptation":
            print(response["id"])
            if response["overflow"] is not None:
                self._print_line(_shortened(response["overflow"]))
        else:
            print(response["answer"].strip())
            if response["overflow"] is not None:
                self._print_line(_shortened(response["overflow"]))
            for citation in response["citations"]:
                self._print_line(_cited(citation))
            self._print_line(_summary(response))

    def _print_line(self, line: str) -> None:
        self.stderr.print(line, markup=False, highlight=False, soft_wrap=True)


def _cited(citation: dict[str, Any]) -> str:
    """Describe a part of the document in one line."""
    text = " ".join(citation["text"].split())
    if len(text) > MAX_CITED:
        text = text[: MAX_CITED - 1] + "…"
    return f"characters {citation['start']} to {citation['end']}: {text}"


def _shortened(overflow: dict[str, Any]) -> str:
    """Describe in one line what was read of a document that was too long."""
    read, sent = overflow["read_tokens"], overflow["sent_tokens"]
    how = {"passages": "the passages that fit the question", "truncate_middle": "both ends"}
    return f"read {read:,} of the document's {sent:,} tokens: {how[overflow['handled']]}"


def _summary(response: dict[str, Any]) -> str:
    """Describe in one line which weights answered, and the seconds of each phase."""
    timings, report = response["timings"], response["adaptation_report"]
    weights = {"base": "the base weights", "adapted": "adapted weights"}
    kept_base = f"the base weights ({response['kept_base_reason']})"
    parts = [f"answered by {weights.get(response['answered_by'], kept_base)}"]
    if report is not None:
        used = f"{report['accepted_step']} of {len(report['steps'])} steps used"
        parts += [used, f"adapted in {timings['adapt_seconds']:.1f} s"]
    else:
        parts.append(f"read in {timings['prefill_seconds']:.1f} s")
    parts.append(f"decoded in {timings['decode_seconds']:.1f} s")
    return ", ".join(parts)


def _format(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
