"""The engine's batches on the real tiny model: nobody's result depends on who else is served."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from refine_server.server.engine.backend import open_backend
from refine_server.server.engine.engine import Engine
from refine_server.server.engine.job import Job
from refine_server.server.http.errors import ApiError
from refine_server.server.metrics import Metrics
from refine_server.server.settings import Settings
from refine_server.ttt.interface.config import AdaptConfig, SamplingConfig
from refine_server.ttt.interface.events import AdaptationStep, AnswerCompleted
from refine_server.ttt.interface.requests import AnswerRequest, CompletionRequest
from refine_server.ttt.models import CausalLM
from refine_server.ttt.programs.start import perform
from refine_server.ttt.refine import held_out
from refine_server.ttt.refine.loop import Loop

TEXT = (
    "The lighthouse keeper writes the weather into a blue book every evening at eight. The harbour "
    "master reads it in the morning before the first boat leaves, and the ferry waits for her. "
)


@asynccontextmanager
async def engine_of(tiny: CausalLM, **options: Any) -> AsyncIterator[Engine]:
    settings = Settings(model="tiny", max_active=8, **options)
    engine = Engine(lambda: open_backend(settings), settings, Metrics())
    engine.start()
    try:
        await asyncio.wrap_future(engine.opened)
        yield engine
    finally:
        await asyncio.to_thread(engine.stop)


def request(number: int, **adapt: Any) -> AnswerRequest:
    """Documents of similar length, every one with its own seed and owner."""
    settings = {"steps": 3, "chunks": 2, "guard": "none", "seed": number, "learning_rate": 2e-3}
    return AnswerRequest(
        f"Day {number}. {TEXT}" + "The sea is calm. " * (number % 3),
        "Who writes the weather?",
        AdaptConfig(**{**settings, **adapt}),
        SamplingConfig(max_tokens=12, ignore_eos=True, temperature=0.7 * (number % 2), seed=number),
        owner=f"owner {number}",
    )


async def result(engine: Engine, job: Job) -> Any:
    return [event async for event in engine.events(job)][-1]


async def submit(engine: Engine, work: Any, name: str) -> Job:
    job = Job(work, name, 60.0)
    await engine.submit(job)
    return job


def sizes(engine: Engine, name: str) -> float:
    """Requests in a batch of that operation, on the average."""
    samples = engine._metrics.batch_size.labels(name)._child_samples()
    values = {sample.name: sample.value for sample in samples if not sample.labels}
    return values["_sum"] / values["_count"]


def same(ours: AnswerCompleted, alone: AnswerCompleted) -> None:
    assert ours.answer == alone.answer
    for step, expected in zip(ours.adaptation.steps, alone.adaptation.steps, strict=True):
        assert step.loss == pytest.approx(expected.loss, abs=1e-5)
        assert step.reward_mean == expected.reward_mean


def test_answers_in_company_are_those_given_alone(
    tiny: CausalLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Among others of which one is cancelled on its way and one becomes NaN."""
    update = Loop.update

    def break_one(loop: Loop, number: int, *args: Any) -> Any:
        if loop.config.seed == 5:
            for tensor in loop.fast.parameters():
                tensor.data.fill_(float("nan"))
        return update(loop, number, *args)

    monkeypatch.setattr(Loop, "update", break_one)
    healthy = [request(number) for number in range(4)]
    prompt = tuple(tiny.tokenizer(TEXT)["input_ids"])
    plain = CompletionRequest((prompt,), SamplingConfig(max_tokens=12), owner="owner 9")

    async def scenario() -> None:
        async with engine_of(tiny) as engine:
            broken = await submit(
                engine,
                request(5, reward="cosine"),
                "broken",
            )
            gone = await submit(engine, request(4, steps=200), "gone")
            base = await submit(engine, plain, "plain")
            jobs = [await submit(engine, work, f"r{n}") for n, work in enumerate(healthy)]
            async for event in engine.events(gone):
                if isinstance(event, AdaptationStep) and event.report.step == 2:
                    engine.cancel(gone, "disconnect")
                    break
            *answers, _, failed = await asyncio.gather(
                *(result(engine, job) for job in jobs), result(engine, base), result(engine, broken)
            )
            for ours, work in zip(answers, healthy, strict=True):
                *_, alone = perform(tiny, work)
                same(ours, alone)
            assert failed.adaptation.guard in (
                held_out.NON_FINITE_LOSS,
                held_out.NON_FINITE_GRADIENT,
            )
            assert sizes(engine, "adapt") > 1.5
            assert sizes(engine, "decode") > 1

    asyncio.run(scenario())


def test_one_at_a_time_when_asked(tiny: CausalLM) -> None:
    async def scenario() -> None:
        async with engine_of(tiny, max_batch=1) as engine:
            jobs = [await submit(engine, request(n, steps=1), f"r{n}") for n in range(2)]
            await asyncio.gather(*(result(engine, job) for job in jobs))
            assert sizes(engine, "adapt") == sizes(engine, "decode") == 1

    asyncio.run(scenario())


def test_an_exception_in_one_request_leaves_the_others(
    tiny: CausalLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    update = Loop.update

    def fail_for_one(self: Loop, *args: Any) -> Any:
        if self.config.seed == 1:
            raise RuntimeError("secret internals")
        return update(self, *args)

    monkeypatch.setattr(Loop, "update", fail_for_one)

    async def scenario() -> None:
        async with engine_of(tiny) as engine:
            jobs = [await submit(engine, request(n), f"r{n}") for n in range(3)]
            first, failed, third = await asyncio.gather(
                *(result(engine, job) for job in jobs), return_exceptions=True
            )
            assert isinstance(failed, ApiError)
            for ours, number in ((first, 0), (third, 2)):
                *_, alone = perform(tiny, request(number))
                same(ours, alone)

    asyncio.run(scenario())
