"""Adapts to each document under each objective and answers its questions in every regime.

A document is adapted to once for all its questions, or once for each question when the spans that
it learns are chosen by the question.
"""

import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import torch

from refine_server.benchmarks.common.rows import read_rows
from refine_server.benchmarks.common.traces import stored_steps
from refine_server.benchmarks.quality.regimes.contexts import Regime, text_of
from refine_server.benchmarks.quality.regimes.items import Item, Question
from refine_server.ttt.batching import run
from refine_server.ttt.decoding.decoder import decode
from refine_server.ttt.decoding.prompts.prompt import DocumentPrompt, PromptTemplate
from refine_server.ttt.document import AdaptedDocument
from refine_server.ttt.evidence.chunks import Offsets
from refine_server.ttt.interface.config import AdaptConfig, Objective, SamplingConfig
from refine_server.ttt.interface.errors import RequestError
from refine_server.ttt.interface.requests import AdaptRequest, Limits
from refine_server.ttt.models import CausalLM
from refine_server.ttt.programs.answer import document_rows, new_fast_weights
from refine_server.ttt.programs.trace_run import trace_run
from refine_server.ttt.refine.inputs.spans import QueryContext
from refine_server.ttt.refine.loop import adapt
from refine_server.ttt.tracing.characters import locate_characters

T = TypeVar("T")

OBJECTIVES: tuple[Objective, ...] = ("none", "ntp", "refine")


@dataclass(frozen=True)
class Result:
    """The result of one document under one objective.

    ``scores`` (0 to 100, the mean over the document's questions) and ``answer_seconds`` (all
    questions) are given by regime. Times are wall time; ``peak_bytes`` is the process's peak memory
    from the start of the adaptation to the last answer. With several adaptations,
    ``accepted_step``, ``guard``, ``steps`` and ``held_out`` are the last one's.
    """

    task: str
    length: int
    id: str
    objective: str
    tokens: int
    scores: dict[str, float]
    adapt_seconds: float
    answer_seconds: dict[str, float]
    peak_bytes: int
    accepted_step: int
    guard: str | None
    answers: dict[str, list[str]] = field(default_factory=dict)
    """By regime, the answer to each question."""
    steps: list[dict[str, Any]] = field(default_factory=list)
    """Reports of the steps, with traces if they are asked for."""
    held_out: list[dict[str, Any]] = field(default_factory=list)
    """Evaluations on the document's held-out spans, by step."""

    @property
    def key(self) -> tuple[str, int, str, str]:
        """What identifies this result in its run."""
        return self.task, self.length, self.id, self.objective

    @classmethod
    def parse(cls, row: Any) -> "Result":
        """Parse one line of a results file."""
        return cls(**row)


class ModelTokenizer:
    """Encodes and decodes with a loaded model's tokenizer, without special tokens."""

    def __init__(self, tokenizer: Any) -> None:
        self._of = tokenizer

    def encode(self, text: str) -> list[int]:
        return list(self._of(text, add_special_tokens=False)["input_ids"])

    def decode(self, ids: list[int]) -> str:
        return str(self._of.decode(ids, skip_special_tokens=True))

    def offsets(self, text: str) -> Offsets:
        encoded = self._of(text, add_special_tokens=False, return_offsets_mapping=True)
        return list(encoded["offset_mapping"])


class AdaptationBench:
    """Runs the benchmark; ``window`` limits the prompts of the alternatives, in tokens."""

    def __init__(
        self, model: CausalLM, config: AdaptConfig, regimes: Sequence[Regime], window: int
    ) -> None:
        self.model, self.config, self.regimes, self.window = model, config, regimes, window
        self.template = PromptTemplate(model.tokenizer)
        self.tokenizer = ModelTokenizer(model.tokenizer)
        self.failures: list[str] = []
        """Which document, under which objective, and why it was refused."""

    def run(self, items: Sequence[Item], path: Path, *, resume: bool) -> Iterator[Result]:
        """Yield all items' results, those of an interrupted run first; write each one at once.

        What is refused is recorded in ``failures``, and the run goes on.
        """
        resume = resume and path.exists()
        done = {r.key: r for r in read_rows(path, Result.parse)} if resume else {}
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a" if resume else "w", encoding="utf-8") as file:
            for item in items:
                for objective in OBJECTIVES:
                    key = item.task, item.length, item.id, objective
                    if key not in done:
                        try:
                            done[key] = self.measure(item, objective)
                        except RequestError as error:
                            self.failures.append(f"{' '.join(map(str, key))}: {error}")
                            continue
                        file.write(json.dumps(asdict(done[key])) + "\n")
                        file.flush()
                    yield done[key]

    def measure(self, item: Item, objective: Objective) -> Result:
        """Adapt to an item's document and answer its questions in every regime."""
        _reset_peak()
        by_question = self.config.on.kind == "query_spans"
        groups = [(q,) for q in item.questions] if by_question else [item.questions]
        adapt_seconds = 0.0
        asked: dict[Regime, list[float]] = {regime: [] for regime in self.regimes}
        answers: dict[str, list[str]] = {regime: [] for regime in self.regimes}
        seconds = dict.fromkeys(self.regimes, 0.0)
        for questions in groups:
            began = time.perf_counter()
            adapted = self._adapt(item, objective, questions[0] if by_question else None)
            adapt_seconds += time.perf_counter() - began
            for regime in self.regimes:
                began = time.perf_counter()
                for question in questions:
                    prediction = self._answer(adapted, item, question, regime)
                    asked[regime].append(question.score(prediction))
                    answers[regime].append(prediction)
                seconds[regime] += time.perf_counter() - began
        report = adapted.report
        return Result(
            item.task,
            item.length,
            item.id,
            objective,
            len(self.tokenizer.encode(item.context)),
            {regime: sum(scores) / len(scores) for regime, scores in asked.items()},
            round(adapt_seconds, 3),
            {regime: round(spent, 3) for regime, spent in seconds.items()},
            _peak(),
            report.accepted_step,
            report.kept_base_reason,
            answers,
            stored_steps(step.model_dump(mode="json") for step in report.steps),
            [result.model_dump(mode="json") for result in report.held_out],
        )

    def _adapt(
        self, item: Item, objective: Objective, question: Question | None = None
    ) -> AdaptedDocument:
        """Adapt to an item's document, for one question if its spans are chosen by the question.

        The instruction before the document is read, but not learned from.
        """
        config = self.config.updated(objective=objective)
        template, limits = self.template, Limits()
        prompt = template.encode_document(item.context, limits)
        context = None
        if question is not None:
            query = template.encode_query(question.query, limits, tail=prompt.tail)
            context = QueryContext(text=question.about, header=prompt.header, query=query)
        request = AdaptRequest(item.context, config)
        header = prompt.header + self.tokenizer.encode(item.before)
        whole = DocumentPrompt(header=header, document=prompt.document)
        fast = new_fast_weights(self.model, request)
        document = document_rows(self.model, whole, request, fast)
        tracer = None
        if config.trace:
            characters = locate_characters(item.context, None, prompt, template, limits)
            tracer = trace_run(
                self.model, whole, characters, lambda event: None, questions=(), evidence=()
            )
        adapted = run(adapt(document, fast, config, query=context, tracer=tracer))
        return replace(adapted, tail=prompt.tail)

    def _answer(
        self, adapted: AdaptedDocument, item: Item, question: Question, regime: Regime
    ) -> str:
        state, tail, ids = adapted.state, adapted.tail, list[int]()
        if regime != "context":
            text = text_of(item, question, regime, self.window, self.tokenizer)
            ids, tail = self._prompt(text)
        query = self.template.encode_query(question.query, Limits(), tail=tail)
        if regime != "context":
            if not ids:  # nothing at all before the query: its own first token begins
                ids, query = query[:1], query[1:]
            read = torch.tensor([ids], device=self.model.device)
            _, state = self.model.read(read, adapted.fast_weights)
        sampling = SamplingConfig(max_tokens=question.max_tokens)
        decoding = decode(self.model, query, state, adapted.fast_weights, sampling)
        return run(decoding).text

    def _prompt(self, document: str | None) -> tuple[list[int], str]:
        """Return the tokens before a query, and the document's tail, which is read with it."""
        prompt = self.template.encode_document(document or "-", Limits())
        if not document:
            return prompt.header, ""
        return prompt.header + prompt.document, prompt.tail


def _reset_peak() -> None:
    """Reset the kernel's record of the process's peak memory, where it allows that."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return


def _peak() -> int:
    """Return the process's peak memory in bytes since the last reset; 0 where it is unknown."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return 0
    found = [int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:")]
    return found[0] if found else 0
