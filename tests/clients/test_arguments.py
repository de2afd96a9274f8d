"""Arguments that cannot be encoded: an error that names the argument, before anything is sent."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refine_server.clients import AsyncRefineClient, RefineClient
from refine_server.clients.arguments import encode_body
from refine_server.clients.errors import ClientError, InvalidArgumentError, ResponseError

LONE = "ab\ud800"
CIRCULAR: list[Any] = []
CIRCULAR.append(CIRCULAR)


def unexpected(request: httpx.Request) -> httpx.Response:
    raise AssertionError(f"{request.method} {request.url} was sent")


def call(method: str, *arguments: Any, **options: Any) -> None:
    """Call a method of the synchronous client, which must send nothing."""
    with RefineClient("http://server", transport=httpx.MockTransport(unexpected)) as client:
        result = getattr(client, method)(*arguments, **options)
        if isinstance(result, Iterator):
            next(result)


def call_async(method: str, *arguments: Any, **options: Any) -> None:
    """Call a method of the asynchronous client, which must send nothing."""

    async def run() -> None:
        transport = httpx.MockTransport(unexpected)
        async with AsyncRefineClient("http://server", transport=transport) as client:
            result = getattr(client, method)(*arguments, **options)
            if isinstance(result, AsyncIterator):
                await anext(result)
            else:
                await result

    asyncio.run(run())


CALLS: list[tuple[str, tuple[Any, ...], dict[str, Any], str]] = [
    ("answer", (LONE,), {"document": "d"}, "query"),
    ("answer", ("q",), {"document": LONE}, "document"),
    ("answer", ("q",), {"document": b"d"}, "document"),
    ("answer", ("q",), {"adaptation": object()}, "adaptation"),
    ("answer", ("q",), {"model": LONE}, "model"),
    ("answer", ("q",), {"temperature": float("nan")}, "temperature"),
    ("answer", ("q",), {"timeout_seconds": float("inf")}, "timeout_seconds"),
    ("answer", ("q",), {"seed": 10**5000}, "seed"),
    ("answer", ("q",), {"stop": {"a", "b"}}, "stop"),
    ("answer", ("q",), {"stop": ["a", LONE]}, "stop.1"),
    ("answer", ("q",), {"stop": CIRCULAR}, "stop"),
    ("answer", ("q",), {"adapt": {"seed": -float("inf")}}, "adapt.seed"),
    ("answer", ("q",), {"adapt": {LONE: 1}}, "adapt"),
    ("answer", ("q",), {"adapt": {1: 2}}, "adapt"),
    ("answer", ("q",), {LONE: 1}, ascii(LONE)),
    ("answer", ("q",), {"adapt": {"a": [0, (1, object())]}}, "adapt.a.1.1"),
    ("stream_answer", (LONE,), {"document": "d"}, "query"),
    ("stream_answer", ("q",), {"adapt": {"loss": {"kl": float("nan")}}}, "adapt.loss.kl"),
    ("adapt", (LONE,), {}, "document"),
    ("adapt", ("d",), {"ttl_seconds": float("nan")}, "ttl_seconds"),
    ("adapt", ("d",), {"adapt": {"optimizer": {1}}}, "adapt.optimizer"),
    ("adaptation", (LONE,), {}, "adaptation_id"),
    ("adaptation", (None,), {}, "adaptation_id"),
    ("adaptation", ("",), {}, "adaptation_id"),
    ("delete_adaptation", (LONE,), {}, "adaptation_id"),
    ("delete_adaptation", ("..",), {}, "adaptation_id"),
    ("follow_adaptation", (LONE,), {}, "adaptation_id"),
    ("wait_for_adaptation", (".",), {}, "adaptation_id"),
    ("tokenize", (LONE,), {}, "text"),
    ("detokenize", ([1, 2.5, float("nan")],), {}, "tokens.2"),
]  # fmt: skip


@pytest.mark.parametrize("run", [call, call_async], ids=["sync", "async"])
@pytest.mark.parametrize(("method", "arguments", "options", "param"), CALLS)
def test_an_argument_that_cannot_be_encoded_is_named_and_not_sent(
    run: Any, method: str, arguments: tuple[Any, ...], options: dict[str, Any], param: str
) -> None:
    with pytest.raises(InvalidArgumentError) as raised:
        run(method, *arguments, **options)
    assert raised.value.param == param
    assert str(raised.value).startswith(f"{param}: ")
    assert str(raised.value).encode()  # it can be printed, whatever the argument was


@pytest.mark.parametrize("client", [RefineClient, AsyncRefineClient])
def test_a_key_that_cannot_be_a_header_is_refused_and_not_shown(
    client: type[RefineClient | AsyncRefineClient], monkeypatch: pytest.MonkeyPatch
) -> None:
    for key in ("sécret-key", "secret key", "secret-key\n", "secret\x00key", f"secret{LONE}"):
        with pytest.raises(InvalidArgumentError, match="api_key: ") as raised:
            client("http://server", api_key=key)
        assert raised.value.param == "api_key"
        assert "cret" not in str(raised.value)
    monkeypatch.setenv("REFINE_API_KEY", "secret-key\n")
    with pytest.raises(InvalidArgumentError, match="REFINE_API_KEY: "):
        client("http://server")
    client("http://server", api_key="an-argument-comes-first")


@pytest.mark.parametrize("client", [RefineClient, AsyncRefineClient])
@pytest.mark.parametrize(
    "url",
    ["", "server", "server:80", "ftp://server", "http://", "http://s:port", f"http://{LONE}", None],
)
def test_an_invalid_url_is_refused(
    client: type[RefineClient | AsyncRefineClient], url: Any
) -> None:
    with pytest.raises(InvalidArgumentError, match="url: ") as raised:
        client(url)
    assert str(raised.value).encode()


def test_an_error_about_an_argument_is_not_a_server_error() -> None:
    assert issubclass(InvalidArgumentError, ClientError)
    assert not issubclass(InvalidArgumentError, ResponseError)


TEXT = st.text('aé\u2028"\\\n😀', max_size=5)
NUMBERS = st.integers() | st.floats(allow_nan=False, allow_infinity=False)
JSON = st.recursive(
    st.none() | st.booleans() | NUMBERS | TEXT,
    lambda part: st.lists(part, max_size=3) | st.dictionaries(TEXT, part, max_size=3),
    max_leaves=5,
)


@given(st.dictionaries(st.sampled_from(["document", "adapt"]), JSON))
def test_every_json_value_is_encoded_as_it_is(arguments: dict[str, Any]) -> None:
    assert json.loads(encode_body(arguments)) == arguments
