"""A sample, its prompt and its official score."""

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
    """The prompt around a context, and the metric of its answers."""

    max_tokens: int
    metric: str
    before: str
    after: str
    answer_prefix: str


@cache
def templates() -> dict[str, Template]:
    """Return all templates by family."""
    text = (
        files("refine_server.benchmarks.quality.ruler").joinpath("prompts.toml").read_text("utf-8")
    )
    return {name: Template(**fields) for name, fields in tomllib.loads(text).items()}


def family_of(task: str) -> str:
    """Return the family of a task, which names its template: ``niah``, ``vt``, ``cwe``, …

    Raises:
        ValueError: there is no such task.
    """
    family = re.sub(r"_(single|multi)\w+|_\d+$", "", task)
    if family not in templates():
        raise ValueError(f"task: {task!r} is not a RULER task")
    return family


@dataclass(frozen=True)
class Sample:
    """One question about one context."""

    task: str
    """Name of the task."""
    index: str
    """Id of the sample within its task."""
    before: str
    """The prompt before the context."""
    context: str
    """The text that is searched."""
    after: str
    """The prompt after the context, with the question."""
    answer_prefix: str
    """Beginning of the answer, at the end of the prompt."""
    outputs: tuple[str, ...]
    """Strings that the answer must contain."""
    length: int = 0
    """Tokens of the prompt and the longest answer."""

    @property
    def prompt(self) -> str:
        """The whole prompt, as the official generator writes it."""
        return f"{self.before}{self.context}{self.after}{self.answer_prefix}"

    @property
    def max_tokens(self) -> int:
        """Maximum length of an answer in tokens."""
        return templates()[family_of(self.task)].max_tokens

    def score(self, prediction: str) -> float:
        """Return ``string_match_all`` or ``string_match_part`` of an answer, 0 to 100."""
        text = CONTROL.sub("\n", prediction.strip()).lower()
        found = [output.lower() in text for output in self.outputs]
        if templates()[family_of(self.task)].metric == "part":
            return 100.0 * any(found)
        return 100.0 * sum(found) / len(found)

    def row(self) -> dict[str, Any]:
        """Return the sample as a row of a data file."""
        return asdict(self)

    @classmethod
    def parse(cls, row: Mapping[str, Any]) -> "Sample":
        """Parse a row made by ``row``, or ``{index, task, context, query, outputs}``.

        The second form, for question answering, has the documents and the question without a
        template.
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
    """Put a context into its task's template.

    Args:
        task: name of the task.
        index: id of the sample within its task.
        context: the text that is searched.
        outputs: strings that the answer must contain.
        examples: solved examples, at the beginning of the prompt.
        form: name of the template; by default the task's family.
        values: values for the template's placeholders.
    """
    template = templates()[form or family_of(task)]
    before, after, prefix = (
        text.format(**values) for text in (template.before, template.after, template.answer_prefix)
    )
    return Sample(task, index, examples + before, context, after, prefix, tuple(outputs))
