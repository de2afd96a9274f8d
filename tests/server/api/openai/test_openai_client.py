"""OpenAI's own client for Python, unmodified, against real servers."""

import asyncio
import threading
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import openai
import pytest
import torch

from refine_server.server.engine import run
from refine_server.server.http import respond
from refine_server.ttt.models import CausalLM
from support.fake_backend import FakeBackend

DOCUMENT = (
    "The harbour code is amber. The bakery owner is Tobias Hartley. The garden flower is orchid. "
    "The castle animal is falcon. The market spice is saffron. The library password is compass."
)
ADAPT = {"rollouts": {"positions": 2}, "optimizer": {"steps": 2}}
QUERY = "What is the castle animal?"
ASKED: list[Any] = [{"role": "user", "content": QUERY}]
HELLO: list[Any] = [{"role": "user", "content": "hello"}]


@pytest.fixture
def client(tiny_url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{tiny_url}/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture
def connect(live: Callable[..., str]) -> Callable[..., openai.OpenAI]:
    """Clients of servers of the scripted model."""

    def connect(retries: int, **options: object) -> openai.OpenAI:
        url = live(**options)
        return openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=retries)

    return connect


def test_models(client: openai.OpenAI) -> None:
    assert "tiny" in [model.id for model in client.models.list()]
    assert client.models.retrieve("tiny").owned_by == "refine-server"
    with pytest.raises(openai.NotFoundError) as error:
        client.models.retrieve("gpt-4")
    assert error.value.code == "model_not_found"


def test_echoed_log_probabilities_are_those_of_a_direct_forward(
    client: openai.OpenAI, tiny: CausalLM
) -> None:
    prompt = f"{DOCUMENT}\n\nQuestion: {QUERY}\nAnswer: falcon"
    completion = client.completions.create(
        model="tiny", prompt=prompt, max_tokens=0, echo=True, logprobs=2
    )
    choice = completion.choices[0]
    assert choice.text == prompt
    assert choice.logprobs is not None
    ids = tiny.tokenizer(prompt)["input_ids"]
    with torch.no_grad():
        expected = tiny(torch.tensor([ids])).logits[0].log_softmax(-1)
    assert choice.logprobs.token_logprobs is not None
    assert choice.logprobs.token_logprobs[0] is None
    values = torch.tensor(choice.logprobs.token_logprobs[1:])
    direct = expected[:-1].gather(-1, torch.tensor(ids[1:])[:, None])[:, 0]
    torch.testing.assert_close(values, direct, rtol=0, atol=1e-5)
    assert choice.logprobs.top_logprobs is not None
    best = [max(top.values()) for top in choice.logprobs.top_logprobs[1:]]
    torch.testing.assert_close(torch.tensor(best), expected[:-1].amax(-1), rtol=0, atol=1e-5)
    offsets, tokens = choice.logprobs.text_offset, choice.logprobs.tokens
    assert offsets is not None
    assert tokens is not None
    assert all(prompt[o:].startswith(t) for o, t in zip(offsets, tokens, strict=True))


def test_seeds_decide_and_each_choice_has_its_own(client: openai.OpenAI) -> None:
    def create(**options: Any) -> list[str]:
        completion = client.completions.create(
            model="tiny", prompt=["The harbour", "A captain"], max_tokens=8, **options
        )
        assert [choice.index for choice in completion.choices] == list(
            range(len(completion.choices))
        )
        return [choice.text for choice in completion.choices]

    four = create(n=2, seed=5)
    assert create(n=2, seed=5) == four
    assert create(seed=6) == four[1::2]
    assert len(set(four)) == 4


def test_a_completion_stream_adds_up_to_the_whole(client: openai.OpenAI) -> None:
    options: dict[str, Any] = {"model": "tiny", "prompt": "The harbour", "max_tokens": 9, "seed": 1}
    whole = client.completions.create(**options)
    chunks = list(
        client.completions.create(**options, stream=True, stream_options={"include_usage": True})
    )
    assert "".join(c.text for chunk in chunks for c in chunk.choices) == whole.choices[0].text
    assert chunks[-2].choices[0].finish_reason == whole.choices[0].finish_reason
    assert chunks[-1].usage == whole.usage


def test_a_chat_about_a_document_answers_as_the_answers_route_does(
    client: openai.OpenAI, tiny_url: str
) -> None:
    body = {"document": DOCUMENT, "query": QUERY, "adapt": ADAPT, "max_tokens": 8}
    expected = httpx.post(f"{tiny_url}/v1/answers", json=body, timeout=60).json()
    completion = client.chat.completions.create(
        model="tiny",
        messages=ASKED,
        max_completion_tokens=8,
        temperature=0,
        logprobs=True,
        top_logprobs=1,
        extra_body={"ttt": {"document": DOCUMENT, "adapt": ADAPT}},
    )
    assert completion.choices[0].message.content == expected["answer"] == " falcon"
    assert completion.usage is not None
    assert completion.usage.prompt_tokens == expected["usage"]["query_tokens"]
    assert completion.choices[0].logprobs is not None
    scored = completion.choices[0].logprobs.content
    assert scored is not None
    assert "".join(token.token for token in scored) == " falcon"
    assert all(token.top_logprobs[0].token == token.token for token in scored)
    adaptation = completion.model_extra["ttt"]["adaptation"] if completion.model_extra else ""
    # The adaptation is a model now.
    stream = client.chat.completions.create(
        model=adaptation, messages=ASKED, temperature=0, stream=True
    )
    chunks = list(stream)
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == " falcon"
    assert chunks[-1].choices[0].finish_reason == "stop"
    assert adaptation in [model.id for model in client.models.list()]


@pytest.mark.anyio
async def test_concurrent_requests_get_their_own_answers(tiny_url: str) -> None:
    """As a load generator does it; every answer is compared with the one asked for alone."""
    async with openai.AsyncOpenAI(base_url=f"{tiny_url}/v1", api_key="none") as client:

        async def ask(seed: int, stream: bool) -> str:
            options: dict[str, Any] = {"model": "tiny", "messages": HELLO, "seed": seed}
            if not stream:
                completion = await client.chat.completions.create(**options, max_tokens=6)
                return completion.choices[0].message.content or ""
            chunks = await client.chat.completions.create(**options, max_tokens=6, stream=True)
            return "".join([c.choices[0].delta.content or "" async for c in chunks])

        alone = [await ask(seed, False) for seed in range(8)]
        together = await asyncio.gather(*(ask(s, s % 2 == 0) for s in [*range(8)] * 3))
    assert together == alone * 3
    assert len(set(alone)) > 4


def test_errors_have_openais_types(client: openai.OpenAI) -> None:
    with pytest.raises(openai.UnprocessableEntityError) as unfit:
        client.completions.create(model="tiny", prompt="x", suffix="y")
    assert (unfit.value.param, unfit.value.code) == ("suffix", "invalid_value")
    with pytest.raises(openai.BadRequestError) as long:
        client.completions.create(model="tiny", prompt=[5] * 40_000)
    assert long.value.code == "context_length_exceeded"
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(model="gpt-4", messages=HELLO)


def test_an_error_in_a_stream_is_raised(connect: Callable[..., openai.OpenAI], fake: Any) -> None:
    stream = connect(0).completions.create(model="fake", prompt=fake.fail("crash"), stream=True)
    with pytest.raises(openai.APIError, match="Internal error"):
        list(stream)


def test_a_full_queue_is_waited_out(
    connect: Callable[..., openai.OpenAI], fake: Any, wait_for: Callable[..., None]
) -> None:
    client = connect(5, max_active=1, max_queue=0)
    held = threading.Thread(
        target=client.completions.create, kwargs={"model": "fake", "prompt": fake.hold("first one")}
    )
    held.start()
    wait_for(lambda: fake.turns == ["first"])
    threading.Timer(0.5, fake.gate.set).start()
    completion = client.completions.create(model="fake", prompt="second")
    held.join()
    assert completion.choices[0].text == "second"
    metrics = httpx.get(str(client.base_url).replace("/v1/", "/metrics")).text
    assert 'refine_requests_total{endpoint="/v1/completions",status="429"}' in metrics


def test_a_failure_after_an_adaptation_is_not_retried(
    connect: Callable[..., openai.OpenAI], fake: Any
) -> None:
    client = connect(2)
    fake.fail("crash")
    with pytest.raises(openai.ConflictError) as failed:
        client.chat.completions.create(
            model="fake", messages=HELLO, extra_body={"ttt": {"document": "crash", "adapt": {}}}
        )
    assert failed.value.code == "adaptation_failed"
    assert fake.turns == ["crash"]
    with pytest.raises(openai.InternalServerError):
        client.with_options(max_retries=1).completions.create(model="fake", prompt="crash")
    assert fake.turns == ["crash"] * 3  # a crash that cost none is retried once


@pytest.mark.parametrize("silent_seconds", [2.0, 0.01])
def test_a_stream_that_waits_for_an_adaptation_is_read_as_any_other(
    connect: Callable[..., openai.OpenAI],
    fake: FakeBackend,
    monkeypatch: pytest.MonkeyPatch,
    silent_seconds: float,
) -> None:
    """The server sends comments meanwhile, which the client skips."""
    monkeypatch.setattr(respond, "SILENT_SECONDS", silent_seconds)
    monkeypatch.setattr(run, "SILENT_SECONDS", silent_seconds)
    ttt = {"document": fake.slow_down("slow text"), "adapt": {"optimizer": {"steps": 8}}}
    with connect(0).chat.completions.create(
        model="fake", messages=HELLO, stream=True, extra_body={"ttt": ttt}
    ) as stream:
        text = "".join(chunk.choices[0].delta.content or "" for chunk in stream)
    assert text == "Question:"
    assert fake.turns.count("slow") == 8
