"""A sample's form, its prompt and its official score."""

import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from importlib.resources import files
from typing import Any

CONTROL = re.compile(r"[\x00-\x1f]")


@dataclass(frozen=True)
class Template:
    """The prompt around a context, and how an answer is scored."""

    max_tokens: int
    metric: str
    before: str
    after: str
    answer_prefix: str


@cache
def templates() -> dict[str, Template]:
    """All templates by family."""
    text = files("refine_server.benchmarks.ruler").joinpath("prompts.toml").read_text("utf-8")
    return {name: Template(**fields) for name, fields in tomllib.loads(text).items()}


def family_of(task: str) -> str:
    """The template's name for a task: ``niah_multikey_2``, ``vt``, ``cwe``, ``fwe``, ``qa_1``, …

    Raises:
        ValueError: there is no such task.
    """
    family = re.sub(r"_(single|multi)\w+|_\d+$", "", task)
    if family not in templates():
        raise ValueError(f"task: {task!r} is not a RULER task")
    return family


@dataclass(frozen=True)
class Sample:
    """One question about one context.

    Attributes:
        task, index: together they name the sample.
        before: the prompt before the context.
        context: what is searched.
        after: the prompt behind the context, with the question.
        answer_prefix: how the answer begins; the prompt's end.
        outputs: what the answer must contain.
        length: tokens of the prompt and of the longest answer.
    """

    task: str
    index: str
    before: str
    context: str
    after: str
    answer_prefix: str
    outputs: tuple[str, ...]
    length: int = 0

    @property
    def prompt(self) -> str:
        """The whole prompt, as the official generator writes it."""
        return f"{self.before}{self.context}{self.after}{self.answer_prefix}"

    @property
    def max_tokens(self) -> int:
        """The longest answer."""
        return templates()[family_of(self.task)].max_tokens

    def score(self, prediction: str) -> float:
        """``string_match_all`` or ``string_match_part`` of an answer, 0 to 100."""
        said = CONTROL.sub("\n", prediction.strip()).lower()
        found = [output.lower() in said for output in self.outputs]
        if templates()[family_of(self.task)].metric == "part":
            return 100.0 * any(found)
        return 100.0 * sum(found) / len(found)

    def row(self) -> dict[str, Any]:
        """The sample as a row of a data file."""
        return asdict(self)

    @classmethod
    def parse(cls, row: Mapping[str, Any]) -> "Sample":
        """A sample from a row of ``row``, or ``{index, task, context, query, outputs}``.

        The second form, for question answering, has the bare documents and the bare question.
        """
        outputs = row["outputs"]
        if not isinstance(outputs, list) or not outputs:
            raise ValueError("outputs: must be a list of strings, at least one")
        if "query" in row:
            return around(
                row["task"], str(row["index"]), row["context"], outputs, query=row["query"]
            )
        family_of(row["task"])
        fields = {name: row[name] for name in cls.__dataclass_fields__}
        return cls(**{**fields, "index": str(row["index"]), "outputs": tuple(outputs)})


def around(
    task: str,
    index: str,
    context: str,
    outputs: Sequence[str],
    *,
    examples: str = "",
    form: str | None = None,
    **values: str,
) -> Sample:
    """A context in its task's template.

    Args:
        task, index: of the sample.
        context, outputs: of the sample.
        examples: solved examples, in front of everything.
        form: the template's name; by default the task's family.
        values: what stands in the template's braces.
    """
    template = templates()[form or family_of(task)]
    before, after, prefix = (
        text.format(**values) for text in (template.before, template.after, template.answer_prefix)
    )
    return Sample(task, index, examples + before, context, after, prefix, tuple(outputs))
