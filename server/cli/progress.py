"""Show a stream of events on a terminal: progress on stderr, answers on stdout."""

import json
import time
from collections.abc import Iterable
from contextlib import nullcontext
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
)
from rich.text import Text

WireEvent = tuple[str, dict[str, Any]]
"""Name and data of a stream's event, whether it came over HTTP or not."""


MAX_CITED = 100
"""Characters of a citation that are shown."""


class TimeLeft(ProgressColumn):
    """Counts down the seconds that were left when they were told last."""

    def render(self, task: Task) -> Text:
        """Show the seconds of a task's field ``ends``, if they are known."""
        ends: float | None = task.fields["ends"]
        left = None if ends is None else max(ends - time.monotonic(), 0.0)
        return Text("" if left is None else f"about {left:.0f} s left", style="progress.remaining")


class Follower:
    """Shows a stream of events and returns the data of its last event, the whole response.

    Args:
        as_json: print the response as one JSON object, and nothing else on stdout.
    """

    def __init__(self, as_json: bool = False) -> None:
        self.as_json = as_json
        self.stderr = Console(stderr=True)

    def follow(self, events: Iterable[WireEvent]) -> dict[str, Any]:
        """Show all events; return the data of the last one."""
        response: dict[str, Any] = {}
        progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=20),
            TextColumn("{task.fields[measured]}"),
            TimeElapsedColumn(),
            TimeLeft(),
            console=self.stderr,
            transient=True,
            redirect_stdout=False,  # otherwise answers would go to stderr
        )
        with progress if self.stderr.is_terminal else nullcontext():
            task = progress.add_task("starting", total=None, measured="", ends=None)
            for name, data in events:
                progress.update(task, ends=_end(data.get("seconds_left")))
                match name:
                    case "answer.base":
                        self._print_base_answer(progress, data["text"])
                    case "answer.delta":
                        self._show_phase(progress, task, "answering")
                    case "answer.completed" | "adaptation.ready":
                        response = data
                    case _:
                        self._show_progress(progress, task, name, data)
        self._print_response(response)
        return response

    def _show_progress(
        self, progress: Progress, task: TaskID, name: str, data: dict[str, Any]
    ) -> None:
        """Show how far the work is: on a terminal in its line, elsewhere in lines of their own."""
        match name:
            case "request.accepted":
                if (cost := data["estimate"]) is not None:
                    self._print_line(describe_cost(cost))
                self._show_place(progress, task, data["queue_position"])
            case "request.queued":
                self._show_place(progress, task, data["queue_position"])
            case "document.reading":
                read, tokens = data["tokens_read"], data["document_tokens"]
                said = f"reading, {read:,} of {tokens:,} tokens"
                progress.update(task, description=said, completed=read, total=tokens)
            case "adaptation.started":
                steps = data["steps"]
                progress.update(task, description=f"step 1 of {steps}", completed=0, total=steps)
            case "adaptation.step":
                self._show_step(progress, task, data)
            case "request.progress" if data["phase"] in ("judging", "answering"):
                self._show_phase(progress, task, data["phase"])

    def _show_phase(self, progress: Progress, task: TaskID, phase: str) -> None:
        """Show a phase that has no parts which could be counted."""
        progress.update(task, description=phase, total=1, completed=1, measured="")

    def _show_place(self, progress: Progress, task: TaskID, place: int) -> None:
        said = f"waiting, number {place} in the queue" if place else "starting"
        progress.update(task, description=said)
        if place and not self.stderr.is_terminal:
            self._print_line(said)

    def _show_step(self, progress: Progress, task: TaskID, step: dict[str, Any]) -> None:
        measured = (
            f"loss {_format(step['loss'])}  reward {_format(step['reward_mean'])}  "
            f"{step['seconds']:.2f} s"
        )
        made, steps = step["step"], step["steps"]
        said = f"step {made + 1} of {steps}" if made < steps else "judging"
        progress.update(task, description=said, completed=made, total=steps, measured=measured)
        if not self.stderr.is_terminal:
            left = step["seconds_left"]
            ends = "" if left is None else f"  about {left:.0f} s left"
            self._print_line(f"step {made}/{steps}  {measured}{ends}")

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


def print_estimate(told: dict[str, Any], as_json: bool) -> None:
    """Print what a request would cost, and whether a server would admit it now."""
    if as_json:
        print(json.dumps(told))
        return
    print(describe_cost(told["estimate"]))
    counts = (("document", told["document_tokens"]), ("query", told["query_tokens"]))
    print(", ".join(f"{count:,} {name} tokens" for name, count in counts if count is not None))
    if told.get("adaptation") is not None:
        print(f"an equal adaptation exists and would be joined: {told['adaptation']}")
    elif told.get("refusal") is not None:
        print(f"would be refused now: {told['refusal']['message']}")
    elif told.get("queue_position"):
        place, left = told["queue_position"], told["seconds_left"]
        print(f"number {place} in the queue, done in about {left:.0f} s")


def describe_cost(cost: dict[str, Any]) -> str:
    """Describe an estimate in one line."""
    phases = (("reading", "read"), ("adapting", "adapt"), ("answering", "decode"))
    parts = [f"{said} {cost[f'{name}_seconds']:.1f} s" for said, name in phases]
    size = f"{cost['memory_bytes'] / 2**30:.2f} GiB"
    return f"about {cost['total_seconds']:.1f} s: {', '.join(parts)}, {size}"


def _end(seconds_left: float | None) -> float | None:
    return None if seconds_left is None else time.monotonic() + seconds_left


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
