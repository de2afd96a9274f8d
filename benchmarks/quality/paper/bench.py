"""Adapts to published prompts and answers them, each with a fresh copy or with carried weights."""

import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from refine_server.benchmarks.common.rows import DataError
from refine_server.benchmarks.common.traces import stored_steps
from refine_server.benchmarks.quality.paper.carry_over import CarriedWeights
from refine_server.benchmarks.quality.paper.rows import MAX_TOKENS, PublishedRow
from refine_server.benchmarks.report.stats import interval, paired, stratified
from refine_server.ttt.batching import run
from refine_server.ttt.decoding.decoder import decode
from refine_server.ttt.decoding.prompts.prompt import DocumentPrompt, PromptTemplate
from refine_server.ttt.fast_weights import BASE, FastWeights
from refine_server.ttt.interface.config import AdaptConfig, Objective, SamplingConfig
from refine_server.ttt.interface.requests import Limits
from refine_server.ttt.models import CausalLM
from refine_server.ttt.models.state import State
from refine_server.ttt.programs.trace_run import trace_run
from refine_server.ttt.refine.inputs.rows import Rows
from refine_server.ttt.refine.inputs.spans import QueryContext
from refine_server.ttt.refine.loop import adapt
from refine_server.ttt.tracing.characters import locate_characters
from refine_server.ttt.tracing.run import RunTracer


@dataclass(frozen=True, kw_only=True, slots=True)
class Result:
    """One answer under one objective."""

    task: str
    number: int
    """The row's number in the run, from 0."""
    objective: str
    tokens: int
    """Tokens of the prompt."""
    answer: str
    score: float
    """0 to 100."""
    adapt_seconds: float
    """With carried weights, the row's share of its batch's seconds."""
    answer_seconds: float
    accepted_step: int | None = None
    """The step whose weights the answer uses, 0 for the base weights; None with carried weights."""
    steps: list[dict[str, Any]] = field(default_factory=list)
    """Reports of the steps, with traces if they are asked for; none with carried weights."""


class PaperBench:
    """Answers published rows under each objective, greedily and with at most 32 tokens.

    A prompt is encoded as it is, without special tokens, and cut at its end where it is too long.

    Args:
        model: the model that adapts and answers.
        config: the settings of an adaptation, which reads whole prompts.
        max_tokens: the longest prompt and answer together, in tokens.
        batch: None adapts a fresh copy to each prompt. Otherwise weights carry over, and so many
            prompts are adapted on before they are answered.

    Raises:
        DataError: the settings are for something else than whole prompts.
    """

    def __init__(
        self, model: CausalLM, config: AdaptConfig, max_tokens: int, batch: int | None
    ) -> None:
        if config.on.kind != "prompt":
            raise DataError("--adapt: on.kind must be prompt, because rows are whole prompts")
        self.model, self.config, self.batch = model, config, batch
        self.longest = max_tokens - MAX_TOKENS

    def run(
        self, rows: Sequence[PublishedRow], objectives: Sequence[Objective], path: Path
    ) -> Iterator[Result]:
        """Yield the results of all rows, objective by objective; write each one at once."""
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w", encoding="utf-8") as file:
            for objective in objectives:
                config = self.config.updated(objective=objective)
                carried = self.batch is not None and objective != "none"
                results = self._carried(rows, config) if carried else self._fresh(rows, config)
                for result in results:
                    file.write(json.dumps(asdict(result)) + "\n")
                    file.flush()
                    yield result

    def _fresh(self, rows: Sequence[PublishedRow], config: AdaptConfig) -> Iterator[Result]:
        """Adapt a copy of the weights to each prompt, answer it, and drop the copy."""
        settings = config.fast_weights
        for number, row in enumerate(rows):
            ids, began = self._encode(row), time.perf_counter()
            fast = BASE
            if config.objective != "none":
                fast = self.model.new_fast_weights(settings.targets, settings.rank, config.seed)
            # The last token is read with the answer, so that its logits are those of the answer.
            document = Rows(self.model, ids[None, :-1], fast, positions=config.rollouts.positions)
            query = QueryContext(text="", header=[], query=ids[-1:].tolist())
            tracer = self._tracer(row, ids) if config.trace else None
            adapted = run(adapt(document, fast, config, query=query, tracer=tracer))
            seconds = time.perf_counter() - began
            result = self._answer(number, row, config, adapted.fast_weights, adapted.state, seconds)
            steps = (step.model_dump(mode="json") for step in adapted.report.steps)
            accepted = adapted.report.accepted_step
            yield replace(result, accepted_step=accepted, steps=stored_steps(steps))

    def _tracer(self, row: PublishedRow, ids: Tensor) -> RunTracer | None:
        """Return what traces the adaptation to the prompt ``ids`` [T], without its last token."""
        prompt = DocumentPrompt(header=[], document=ids[:-1].tolist())
        template = PromptTemplate(self.model.tokenizer)
        characters = locate_characters(row.prompt, None, prompt, template, Limits())
        return trace_run(
            self.model, prompt, characters, lambda event: None, questions=(), evidence=()
        )

    def _carried(self, rows: Sequence[PublishedRow], config: AdaptConfig) -> Iterator[Result]:
        """Adapt one copy of the weights to batch after batch, and answer each batch with it."""
        weights, size = CarriedWeights(self.model, config), self.batch or 1
        for start in range(0, len(rows), size):
            batch, began = rows[start : start + size], time.perf_counter()
            weights.adapt([self._encode(row) for row in batch])
            seconds = (time.perf_counter() - began) / len(batch)
            fast = weights.fast.detach()
            for number, row in enumerate(batch, start):
                with torch.no_grad():
                    _, state = self.model.read(self._encode(row)[None, :-1], fast)
                yield self._answer(number, row, config, fast, state, seconds)

    def _answer(
        self,
        number: int,
        row: PublishedRow,
        config: AdaptConfig,
        fast: FastWeights,
        state: State,
        adapt_seconds: float,
    ) -> Result:
        """Answer a prompt whose tokens but the last one were read."""
        ids, began = self._encode(row).tolist(), time.perf_counter()
        sampling = SamplingConfig(max_tokens=MAX_TOKENS)
        decoded = run(decode(self.model, ids[-1:], state, fast, sampling, document=ids[:-1]))
        return Result(
            task=row.task,
            number=number,
            objective=config.objective,
            tokens=len(ids),
            answer=decoded.text,
            score=row.score(decoded.text),
            adapt_seconds=round(adapt_seconds, 3),
            answer_seconds=round(time.perf_counter() - began, 3),
        )

    def _encode(self, row: PublishedRow) -> Tensor:
        """Encode a prompt: [T] token ids."""
        ids = self.model.tokenizer(row.prompt, add_special_tokens=False)["input_ids"]
        return torch.tensor(ids[: self.longest], device=self.model.device)


def figures(results: Sequence[Result]) -> dict[str, Any]:
    """Return scores by objective and task, means over tasks, and paired differences of rows.

    Means and differences have 95 % intervals; every objective answered the same rows in order.
    """
    by_task: dict[str, dict[str, list[float]]] = {}
    for result in results:
        own = by_task.setdefault(result.objective, {})
        own.setdefault(result.task, []).append(result.score)
    scores = {o: [score for of in own.values() for score in of] for o, own in by_task.items()}
    pairs = [
        (ours, theirs)
        for ours, theirs in (("ntp", "none"), ("refine", "none"), ("refine", "ntp"))
        if ours in scores and theirs in scores
    ]
    return {
        "scores": {
            o: {task: round(interval(of).mean, 2) for task, of in own.items()}
            for o, own in by_task.items()
        },
        "means": {o: str(stratified(own)) for o, own in by_task.items()},
        "differences": {f"{a}-{b}": str(paired(scores[a], scores[b]).difference) for a, b in pairs},
        "n": len(results) // len(by_task),
    }
