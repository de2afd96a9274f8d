"""LongBench and RULER from local files, as tasks of lm-evaluation-harness: see docs/benchmarks.md.

``lm_eval --include_path`` reads this folder. The fields of ``--metadata`` are passed as keyword
arguments, together with the model's arguments.
"""

import os
import re
from pathlib import Path
from typing import Any

import datasets

from refine_server.benchmarks.common.rows import DataError, read_rows
from refine_server.benchmarks.common.tokens import FileTokenizer, ServerTokenizer, Tokenizer
from refine_server.benchmarks.quality.longbench.data import load
from refine_server.benchmarks.quality.longbench.prompts import split_prompt
from refine_server.benchmarks.quality.longbench.score import score
from refine_server.benchmarks.quality.longbench.tasks import task_of
from refine_server.benchmarks.quality.ruler.samples import Sample, family_of
from refine_server.clients import RefineClient

TEMPLATE = 64
"""Tokens that are left to the chat template around a prompt."""


def longbench(
    dataset: str,
    longbench_data: str | None = None,
    max_length: int | str | None = None,
    tokenizer: str | None = None,
    base_url: str = "",
    **_: Any,
) -> dict[str, datasets.Dataset]:
    """Return the rows of one task as prompts, cut in the middle.

    A prompt, its answer and what a chat template adds have ``max_length`` tokens together, which is
    the model's argument of the same name. In chats, which the harness does not cut, the default is
    what the server at ``base_url`` reads. The tokenizer is read from a file or, by default, used
    over HTTP from that server.

    Raises:
        DataError: the harness would cut prompts, or something is missing from the metadata.
    """
    folder = _given("longbench_data", longbench_data)
    _require_max_length(base_url, max_length)
    if tokenizer is not None and max_length is not None:
        return _dataset(folder, dataset, int(max_length), FileTokenizer(tokenizer))
    if not base_url:
        raise DataError("--metadata needs max_length and tokenizer where a model has no base_url")
    server = server_of(base_url)
    with RefineClient(server, api_key=os.environ.get("OPENAI_API_KEY")) as client:
        tokens: Tokenizer = ServerTokenizer(client)
        if tokenizer is not None:
            tokens = FileTokenizer(tokenizer)
        if max_length is None:
            max_length = client.models()[0].max_model_len
        return _dataset(folder, dataset, int(max_length), tokens)


def server_of(base_url: str) -> str:
    """Return the server's address from that of a route, as models of lm_eval take it."""
    return re.sub(r"/v1(/chat)?(/completions)?/*$", "", base_url)


def _dataset(
    folder: Path, dataset: str, max_length: int, tokens: Tokenizer
) -> dict[str, datasets.Dataset]:
    docs = []
    for row in load(folder, [dataset]):
        asked = split_prompt(row, max_length - row.task.max_tokens - TEMPLATE, tokens)
        docs.append(
            {
                "id": row.id,
                "dataset": row.task.name,
                "prompt": asked.prompt,
                "answers": list(row.answers),
                "all_classes": list(row.classes),
            }
        )
    return {"test": datasets.Dataset.from_list(docs)}


def longbench_score(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    """Return the official score of one prediction, 0 to 100."""
    task = task_of(doc["dataset"])
    return {"score": score(task, results[0], doc["answers"], doc["all_classes"])}


def ruler(
    family: str,
    ruler_data: str | None = None,
    max_length: int | str | None = None,
    base_url: str = "",
    **_: Any,
) -> dict[str, datasets.Dataset]:
    """Return the samples of one family: ``niah``, ``vt``, ``cwe``, ``fwe`` or ``qa``.

    Raises:
        DataError: the harness would cut prompts, or the file has no samples of the family.
    """
    path = _given("ruler_data", ruler_data)
    _require_max_length(base_url, max_length)
    docs = [
        {**sample.row(), "prompt": sample.prompt, "outputs": list(sample.outputs)}
        for sample in read_rows(path, Sample.parse)
        if family_of(sample.task) == family
    ]
    if not docs:
        raise DataError(f"{path} has no sample of {family}")
    return {"test": datasets.Dataset.from_list(docs)}


def ruler_score(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    """Return ``string_match_all`` or ``string_match_part`` of one prediction, 0 to 100."""
    row = {name: doc[name] for name in Sample.__dataclass_fields__}
    return {"score": Sample.parse(row).score(results[0])}


def _require_max_length(base_url: str, max_length: int | str | None) -> None:
    """Refuse to have prompts cut: without ``max_length`` the harness keeps their last 2,047 tokens.

    Raises:
        DataError: the model completes prompts, which the harness cuts, and no length is given.
    """
    if base_url and max_length is None and "/chat/" not in base_url:
        raise DataError(
            "--model_args needs max_length=N, the max_model_len of the server's /v1/models: "
            "without it lm-evaluation-harness cuts all prompts to 2,047 tokens from the left"
        )


def _given(name: str, value: str | None) -> Path:
    if value is None:
        raise DataError(f'--metadata needs {name}, as in --metadata \'{{"{name}": "PATH"}}\'')
    return Path(value)
