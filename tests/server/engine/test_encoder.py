"""Texts are tokenised once, outside the model's thread, and long texts do not delay short ones."""

import asyncio
import threading
from collections import Counter
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
from starlette.testclient import TestClient
from transformers import PreTrainedTokenizerBase

from refine_server.server.app import create_app
from refine_server.server.engine.encoder import (
    LONG_TEXT,
    LONG_TEXT_THREADS,
    Encoder,
    TemplatePool,
    adapts,
)
from refine_server.server.settings import Settings
from refine_server.ttt.decoding.prompts.prompt import PromptTemplate
from refine_server.ttt.interface.config import AdaptConfig
from refine_server.ttt.interface.requests import AdaptRequest, AnswerRequest, CompletionRequest
from support.engines import serving, until
from support.fake_backend import FakeBackend, byte_tokenizer

ADAPT = {
    "rollouts": {"positions": 1, "per_position": 2},
    "optimizer": {"steps": 1},
    "guard": "none",
}


class TokenizerSpy:
    """Records which thread encodes which text, with any tokenizer."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, tokenizer: type) -> None:
        self.calls: list[tuple[str, str]] = []
        encode = tokenizer._encode_plus  # type: ignore[attr-defined]

        def recording(own: PreTrainedTokenizerBase, text: Any, *args: Any, **options: Any) -> Any:
            self.calls.append((threading.current_thread().name, str(text)))
            return encode(own, text, *args, **options)

        monkeypatch.setattr(tokenizer, "_encode_plus", recording)

    def count(self, mark: str) -> int:
        """Count the calls whose text contains ``mark``."""
        return sum(mark in text for _, text in self.calls)


@pytest.fixture
def client() -> Iterator[TestClient]:
    """A server of the real tiny model."""
    with TestClient(create_app(Settings(model="tiny", store="none"))) as client:
        client.app.state.engine.opened.result(30)  # type: ignore[attr-defined]
        while client.get("/health/ready").status_code == 503:
            pass
        yield client


def test_every_text_is_tokenised_once_and_never_on_the_models_thread(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = client.app.state.engine.opened.result()  # type: ignore[attr-defined]
    spy = TokenizerSpy(monkeypatch, type(backend.model.tokenizer))

    def post(path: str, **body: Any) -> Any:
        response = client.post(path, json=body)
        assert response.is_success, response.text
        return response.json()

    whole = {"document": "apple apple", "context": "document"}
    post("/v1/answers", **whole, query="apricot", adapt=ADAPT, max_tokens=4)
    # Once to cut the document into passages, and once the passages as a prompt.
    post("/v1/answers", document="grape grape", query="guava", max_tokens=4)
    made = post("/v1/adaptations", document="banana banana", adapt=ADAPT)["id"]
    post("/v1/answers", query="blueberry", adaptation=made, max_tokens=4)
    post("/v1/completions", prompt="cherry cherry", max_tokens=4)
    post("/v1/completions", prompt=["date", "currant"], model=made, max_tokens=4)
    message = {"role": "user", "content": "elderberry"}
    ttt = {"document": "fig fig", "adapt": ADAPT, "context": "document"}
    for _ in range(2):  # the second one joins the adaptation, and does not encode its document
        post("/v1/chat/completions", messages=[message], ttt=ttt, max_tokens=4)

    texts = Counter({"apple apple": 1, "apricot": 1, "banana banana": 1, "blueberry": 1})
    texts += Counter({"grape grape": 2, "guava": 1})
    texts += Counter({"cherry cherry": 1, "date": 1, "currant": 1, "elderberry": 2, "fig fig": 1})
    assert {text: spy.count(text) for text in texts} == texts
    threads = {thread for thread, _ in spy.calls}
    assert all(name.startswith("refine-encode") for name in threads), threads


@pytest.mark.anyio
async def test_a_short_text_does_not_wait_for_long_ones() -> None:
    encoder, gate = Encoder(), threading.Event()
    long = [
        asyncio.create_task(encoder.run(lambda: gate.wait(10), characters=LONG_TEXT))
        for _ in range(LONG_TEXT_THREADS + 1)
    ]
    await asyncio.sleep(0)
    async with asyncio.timeout(5):
        assert await encoder.run(lambda: "short", characters=LONG_TEXT - 1) == "short"
    gate.set()
    assert all(await asyncio.gather(*long))
    encoder.close()


@pytest.mark.anyio
async def test_a_short_text_does_not_wait_until_the_memory_of_adaptations_is_measured() -> None:
    encoder, gate = Encoder(), threading.Event()
    adapting = asyncio.create_task(
        encoder.run(lambda: gate.wait(10), characters=1, may_measure=True)
    )
    await asyncio.sleep(0)
    async with asyncio.timeout(5):
        assert await encoder.run(lambda: "short", characters=1) == "short"
    gate.set()
    assert await adapting
    encoder.close()


@pytest.mark.parametrize(
    ("objective", "makes_steps"), [("refine", True), ("ntp", True), ("none", False)]
)
def test_requests_that_make_steps_are_known(objective: str, makes_steps: bool) -> None:
    adapt = AdaptConfig.model_validate({"objective": objective})
    assert adapts(AdaptRequest("a document", adapt)) is makes_steps
    assert adapts(AnswerRequest("a document", "a question", adapt=adapt)) is makes_steps
    assert not adapts(CompletionRequest(prompts=("a prompt",)))


@pytest.mark.anyio
async def test_what_a_client_that_left_asked_for_is_never_encoded() -> None:
    encoder, gate = Encoder(), threading.Event()
    encoded: list[str] = []
    first = asyncio.create_task(encoder.run(lambda: gate.wait(10), characters=1))
    await asyncio.sleep(0)
    left, stayed = (
        asyncio.create_task(encoder.run(partial(encoded.append, name), characters=1))
        for name in ("left", "stayed")
    )
    await asyncio.sleep(0)
    left.cancel()
    await asyncio.wait([left])
    gate.set()
    await asyncio.gather(first, stayed)
    assert encoded == ["stayed"]
    encoder.close()


@pytest.mark.anyio
async def test_a_request_that_is_left_while_it_is_encoded_is_never_submitted(
    fake: FakeBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode, gate = fake.encode, threading.Event()
    async with serving(fake.open, model="fake") as served:
        entered = threading.Event()

        def held(work: Any) -> Any:
            entered.set()
            gate.wait(10)
            return encode(work)

        monkeypatch.setattr(fake, "encode", held)
        left = served.submit(AnswerRequest("text", "left"))
        await until(entered.is_set)
        await left.leave()
        gate.set()
        await served.submit(AnswerRequest("text", "stayed")).finish()
        assert set(fake.turns) == {"stayed"}


def test_a_tokenizer_is_used_by_one_thread_at_a_time() -> None:
    pool = TemplatePool(PromptTemplate(byte_tokenizer()))
    with pool.take() as one, pool.take() as other:
        assert one.tokenizer is not other.tokenizer
