"""Rows of RULER and LongBench as the paper's authors publish them: whole prompts with answers.

The files are in the folder ``data`` of github.com/princetonvisualai/ReFINE, as parquet. RULER's
rows have ``index, prompt, answer, task``, LongBench's ``prompt, answers, task``; other columns are
ignored.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from refine_server.benchmarks.quality.longbench.score import score
from refine_server.benchmarks.quality.longbench.tasks import task_of, tasks
from refine_server.benchmarks.quality.paper.trec import CLASSES
from refine_server.benchmarks.quality.ruler.samples import CONTROL

MAX_TOKENS = 32
"""Longest answer in tokens, the same for all tasks, as in the published scripts."""
RULER = "ruler_"
"""How the names of RULER's tasks begin."""


class PromptParts(NamedTuple):
    """A prompt of RULER's question answering: ``before``, ``context`` and ``after`` together."""

    before: str
    context: str
    after: str
    question: str
    """The question in ``after``."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PublishedRow:
    """One prompt and its accepted answers."""

    task: str
    prompt: str
    answers: tuple[str, ...]

    @classmethod
    def parse(cls, row: Mapping[str, Any]) -> "PublishedRow":
        """Parse a row of a published file.

        Raises:
            ValueError: a field has another type, or the task is unknown.
        """
        task, prompt = row["task"], row["prompt"]
        name = "answer" if "answer" in row else "answers"
        answers = row[name]
        if not isinstance(task, str) or not isinstance(prompt, str):
            raise ValueError("task and prompt: must be strings")
        if not isinstance(answers, list) or not all(isinstance(a, str) for a in answers):
            raise ValueError(f"{name}: must be a list of strings")
        if not answers:
            raise ValueError(f"{name}: must have at least one string")
        if not task.startswith(RULER) and task not in tasks():
            raise ValueError(f"task: {task!r} is a task neither of RULER nor of LongBench")
        return cls(task=task, prompt=prompt, answers=tuple(answers))

    def score(self, answer: str) -> float:
        """Score an answer as the published code does, 0 to 100.

        RULER: whether the first line has one of the accepted answers in it. LongBench: its own
        metric, in question answering of the first line only.
        """
        first_line = answer.split("\n")[0]
        if self.task.startswith(RULER):
            text = CONTROL.sub("\n", first_line.strip()).lower()
            return 100.0 * any(accepted.lower() in text for accepted in self.answers)
        task = task_of(self.task)
        if task.group.endswith("document QA"):
            answer = first_line
        return score(task, answer, self.answers, CLASSES)

    def parts(self) -> PromptParts:
        """Divide a prompt of RULER's question answering, which has LongBench's template.

        Raises:
            ValueError: the prompt has another template.
        """
        template = task_of("hotpotqa")
        before = template.before.lstrip("\n")
        opening, _, closing = template.after("\0").partition("\0")
        context, found, question = self.prompt.removeprefix(before).rpartition(opening)
        if not self.prompt.startswith(before) or not found or not question.endswith(closing):
            raise ValueError("prompt: must be question answering over passages")
        question = question.removesuffix(closing)
        return PromptParts(before, context, opening + question + closing, question)
