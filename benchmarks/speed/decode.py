"""Greedy answers about the example documents, with and without drafts, against transformers."""

import json
import statistics
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers import DynamicCache

from refine_server.benchmarks.common.timing import medians
from refine_server.benchmarks.quality.examples import examples_for
from refine_server.benchmarks.speed.prefill import load_both
from refine_server.ttt.batching import resume, run_batch
from refine_server.ttt.decoding.decode import DecodeStep, Prediction
from refine_server.ttt.decoding.decoder import decode
from refine_server.ttt.decoding.prompts.prompt import PromptTemplate
from refine_server.ttt.fast_weights import BASE
from refine_server.ttt.interface.config import SamplingConfig
from refine_server.ttt.interface.requests import Limits
from refine_server.ttt.models.loading.loader import find, read_tokenizer
from refine_server.ttt.models.state import State

SIDES = ("ours", "without_drafts", "transformers")


@dataclass
class Prompt:
    """A document and a question; both sides prefill it up to the last token of the question."""

    ids: list[int]
    state: State
    cache: DynamicCache


@dataclass
class Written:
    """The output of one side; for ours also how many tokens were drafted, and accepted."""

    ids: list[int]
    steps: int = 0
    drafted: int = 0
    accepted: int = 0


class DecodeBench:
    """Times greedy answers to real questions; a small model repeats itself after a random prompt.

    Args:
        model: the model, which is loaded by transformers and by this package, in fp32.
        directory: directory of files like those in ``examples/``.
        questions: number of questions about each document.
        tokens: maximum length of an answer in tokens.
    """

    def __init__(
        self, model: str, directory: Path, questions: int, tokens: int, threads: int | None = None
    ) -> None:
        if threads is not None:
            torch.set_num_threads(threads)
        self.name, self.questions = model, questions
        self.files = examples_for(directory, model)
        self.theirs, self.ours = load_both(model)
        self.ours.tokenizer = read_tokenizer(find(model))
        self.sampling = SamplingConfig(max_tokens=tokens)

    @torch.no_grad()
    def run(self, repeats: int) -> dict[str, Any]:
        """Return the median seconds of each answer, summed over answers, and their ratios."""
        seconds: dict[str, list[float]] = {side: [] for side in SIDES}
        answers: dict[str, list[Written]] = {side: [] for side in SIDES}
        for prompt in self._prompts():
            written: dict[str, Written] = {}
            sides = {
                side: lambda p=prompt, s=side, w=written: w.update({s: self._write(p, s)})
                for side in SIDES
            }
            for side, median in medians(sides, repeats, warm_up=0).items():
                seconds[side].append(median)
                answers[side].append(written[side])
        return {**self._facts(answers), **_speeds(seconds, _tokens(answers["ours"]))}

    def _facts(self, answers: dict[str, list[Written]]) -> dict[str, Any]:
        ids = {side: [written.ids for written in own] for side, own in answers.items()}
        ours = answers["ours"]
        steps = sum(written.steps for written in ours)
        return {
            "model": self.name,
            "against": f"transformers {type(self.theirs).__name__}",
            "threads": torch.get_num_threads(),
            "answers": len(ours),
            "tokens": _tokens(ours),
            "drafted_tokens": sum(written.drafted for written in ours),
            "accepted_tokens": sum(written.accepted for written in ours),
            "tokens_per_step": _tokens(ours) / steps,
            "tokens_equal": ids["ours"] == ids["without_drafts"] == ids["transformers"],
        }

    # -- prefill, which is not timed ------------------------------------------------------------

    def _prompts(self) -> Iterator[Prompt]:
        template = PromptTemplate(self.ours.tokenizer)
        for file in self.files:
            example = json.loads(file.read_text())
            document = template.encode_document(
                (file.parent / example["document"]).read_text(), Limits()
            )
            begin = [*document.header, *document.document]
            cache = DynamicCache(config=self.theirs.config)
            self.theirs(torch.tensor([begin]), past_key_values=cache, logits_to_keep=1)
            _, state = self.ours.read(torch.tensor([begin]), BASE)
            for question in example["questions"][: self.questions]:
                query = template.encode_query(question["query"], Limits(), tail=document.tail)
                ids = torch.tensor([query[:-1]])
                _keep(cache, len(begin))
                self.theirs(ids, past_key_values=cache, logits_to_keep=1)
                yield Prompt([*begin, *query], self.ours(ids, state).state, cache)

    # -- decoding -------------------------------------------------------------------------------

    def _write(self, prompt: Prompt, side: str) -> Written:
        if side == "transformers":
            return self._write_theirs(prompt)
        return self._write_ours(prompt, drafts=side == "ours")

    def _write_theirs(self, prompt: Prompt) -> Written:
        ids = torch.tensor([prompt.ids])
        _keep(prompt.cache, len(prompt.ids) - 1)
        output = self.theirs.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            past_key_values=prompt.cache,
            max_new_tokens=self.sampling.max_tokens,
            eos_token_id=list(self.ours.stop_ids),
            do_sample=False,
            pad_token_id=0,
        )
        return Written(output[0, len(prompt.ids) :].tolist())

    def _write_ours(self, prompt: Prompt, *, drafts: bool) -> Written:
        *read, last = prompt.ids
        written = Written([], steps=1)
        program = decode(
            self.ours,
            [last],
            prompt.state,
            BASE,
            self.sampling,
            document=read,
            on_token=lambda token: written.ids.append(token.id),
        )
        outcome: Any = None
        while True:
            try:
                operation = resume(program, outcome)
            except StopIteration:
                return written
            if isinstance(operation, DecodeStep) and not drafts:
                operation = replace(operation, draft=())
            [outcome] = run_batch([operation])
            if isinstance(operation, DecodeStep):
                _count(written, outcome)


def _count(written: Written, prediction: Prediction) -> None:
    written.steps += 1
    written.drafted += prediction.drafted
    written.accepted += prediction.accepted


def _keep(cache: DynamicCache, tokens: int) -> None:
    """Truncate a cache to its first tokens."""
    cache.crop(tokens - cache.get_seq_length())


def _tokens(answers: list[Written]) -> int:
    return sum(len(written.ids) for written in answers)


def _speeds(seconds: dict[str, list[float]], tokens: int) -> dict[str, float]:
    total = {side: sum(own) for side, own in seconds.items()}
    by_answer = [
        theirs / ours for theirs, ours in zip(seconds["transformers"], seconds["ours"], strict=True)
    ]
    return {
        **{f"{side}_tokens_per_second": tokens / total[side] for side in SIDES},
        "speedup_vs_transformers": total["transformers"] / total["ours"],
        "speedup_without_drafts": total["transformers"] / total["without_drafts"],
        "speedup_median_answer": statistics.median(by_answer),
        "speedup_slowest_answer": min(by_answer),
    }
