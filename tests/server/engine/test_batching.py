"""The engine's batches on the tiny model: no result depends on the other requests."""

import asyncio
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from typing import Any

import pytest

from refine_server.server.engine.backend.opening import open_backend
from refine_server.server.http.errors import ApiError
from refine_server.ttt.interface.config import (
    AdaptConfig,
    OptimizerConfig,
    RolloutConfig,
    SamplingConfig,
)
from refine_server.ttt.interface.events import AdaptationStep, AnswerCompleted
from refine_server.ttt.interface.output_format import ChoiceFormat, JsonFormat
from refine_server.ttt.interface.requests import AnswerRequest, CompletionRequest
from refine_server.ttt.models import CausalLM
from refine_server.ttt.programs.start import perform
from refine_server.ttt.refine import guard
from refine_server.ttt.refine.step import AdaptStep
from support.engines import Served, serving, until

pytestmark = pytest.mark.anyio

TEXT = (
    "The lighthouse keeper writes the weather into a blue book every evening at eight. The harbour "
    "master reads it in the morning before the first boat leaves, and the ferry waits for her. "
)


def serving_tiny(**options: Any) -> AbstractAsyncContextManager[Served]:
    return serving(open_backend, model="tiny", max_active=8, **options)


def request(number: int, **adapt: Any) -> AnswerRequest:
    """Documents of similar length, every one with its own seed and owner."""
    settings = AdaptConfig(
        rollouts=RolloutConfig(positions=2),
        optimizer=OptimizerConfig(steps=3, learning_rate=2e-3),
        guard="none",
        seed=number,
    )
    return AnswerRequest(
        f"Day {number}. {TEXT}" + "The sea is calm. " * (number % 3),
        "Who writes the weather?",
        settings.updated(**adapt),
        SamplingConfig(max_tokens=12, ignore_eos=True, temperature=0.7 * (number % 2), seed=number),
        owner=f"owner {number}",
    )


def same(ours: AnswerCompleted, reference: AnswerCompleted) -> None:
    assert ours.answer == reference.answer
    for step, expected in zip(ours.adaptation.steps, reference.adaptation.steps, strict=True):
        assert step.loss == pytest.approx(expected.loss, abs=1e-5)
        assert step.reward_mean == expected.reward_mean


def alone(tiny: CausalLM, work: AnswerRequest) -> AnswerCompleted:
    """Return the answer without an engine."""
    *_, last = perform(tiny, work)
    assert isinstance(last, AnswerCompleted)
    return last


async def test_answers_in_batches_are_those_given_alone(
    tiny: CausalLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the other requests, one is cancelled while it runs and one becomes NaN."""
    update = AdaptStep.update

    def break_one(step: AdaptStep, *args: Any) -> Any:
        if step.run.config.seed == 5:
            for tensor in step.run.fast.parameters():
                tensor.data.fill_(float("nan"))
        return update(step, *args)

    monkeypatch.setattr(AdaptStep, "update", break_one)
    healthy = [request(number) for number in range(4)]
    prompt = tuple(tiny.tokenizer(TEXT)["input_ids"])
    plain = CompletionRequest((prompt,), SamplingConfig(max_tokens=12), owner="owner 9")

    async with serving_tiny() as served:
        broken = await served.submit(request(5, rollouts={"reward": "cosine"})).admitted()
        gone = await served.submit(request(4, optimizer={"steps": 200})).admitted()
        base = await served.submit(plain).admitted()
        jobs = [await served.submit(work).admitted() for work in healthy]
        await until(lambda: sum(isinstance(e, AdaptationStep) for e in gone.events) == 2)
        await gone.leave()
        await base.finish()
        failed = await broken.answer()
        answers = [await job.answer() for job in jobs]
        for ours, work in zip(answers, healthy, strict=True):
            same(ours, alone(tiny, work))
        assert failed.adaptation.kept_base_reason in (
            guard.NON_FINITE_LOSS,
            guard.NON_FINITE_GRADIENT,
        )
        assert served.mean_batch_size("adapt") > 1.5
        assert served.mean_batch_size("decode") > 1


async def test_answers_of_different_forms_in_one_batch_are_those_given_alone(
    tiny: CausalLM,
) -> None:
    schema = '{"type": "object", "properties": {"who": {"type": "string", "maxLength": 9}}}'
    forms = [JsonFormat(schema, "f"), ChoiceFormat(("the keeper", "nobody"), "f"), None]
    works = []
    for number, form in enumerate([*forms, *forms]):
        work = request(number, objective="none")
        sampling = SamplingConfig(max_tokens=12, form=form, temperature=0.7, seed=number)
        works.append(replace(work, sampling=sampling))
    async with serving_tiny() as served:
        submitted = [served.submit(work) for work in works]
        answers = [await work.answer() for work in submitted]
        assert served.mean_batch_size("decode") > 1
    for work, answer in zip(works, answers, strict=True):
        expected = alone(tiny, work)
        assert (answer.answer, answer.finish_reason) == (expected.answer, expected.finish_reason)


async def test_one_at_a_time_when_asked() -> None:
    async with serving_tiny(max_batch=1) as served:
        jobs = [
            await served.submit(request(n, optimizer={"steps": 1})).admitted() for n in range(2)
        ]
        await asyncio.gather(*(job.finish() for job in jobs))
        assert served.mean_batch_size("adapt") == served.mean_batch_size("decode") == 1


async def test_an_exception_in_one_request_leaves_the_others(
    tiny: CausalLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    update = AdaptStep.update

    def fail_for_one(step: AdaptStep, *args: Any) -> Any:
        if step.run.config.seed == 1:
            raise RuntimeError("secret internals")
        return update(step, *args)

    monkeypatch.setattr(AdaptStep, "update", fail_for_one)
    async with serving_tiny() as served:
        first, failing, third = [await served.submit(request(n)).admitted() for n in range(3)]
        with pytest.raises(ApiError):
            await failing.finish()
        for job, number in ((first, 0), (third, 2)):
            same(await job.answer(), alone(tiny, request(number)))
