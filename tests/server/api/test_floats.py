"""Every number of a request that may have a fraction, at the ends of its range, on a real model."""

from collections.abc import Iterator, Mapping
from typing import Any

import httpx
import pytest

from refine_server.server.app import create_app
from refine_server.server.settings import Settings

EXTREMES = (5e-324, 1e-45, 1e-40, -0.0, 0.0, 1e38, 1.7e308, -1e-320)
"""Subnormal numbers of double and of single precision, both zeros, and the largest."""
DOCUMENT = "The harbour code is amber. The castle animal is falcon."
ASK = {"document": DOCUMENT, "query": "What is the castle animal?", "max_tokens": 2}
CHAT = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 2}
STEP = {"optimizer": {"steps": 1}, "rollouts": {"positions": 1, "per_position": 2}, "guard": "none"}
BODIES: dict[str, dict[str, Any]] = {
    "/v1/answers": {**ASK, "adapt": STEP},
    "/v1/adaptations": {"document": DOCUMENT, "adapt": STEP},
    "/v1/completions": {"prompt": DOCUMENT, "max_tokens": 2},
    "/v1/chat/completions": CHAT,
    "/v1/responses": {"input": "hello", "max_output_tokens": 2},
}


def numbers_of(schema: Mapping[str, Any], schemas: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    """Yield the paths of all numbers that need not be whole, below an object of the document."""
    for name, field in schema.get("properties", {}).items():
        kinds = [field, *field.get("anyOf", ()), *field.get("oneOf", ())]
        if any(kind.get("type") == "number" for kind in kinds):
            yield (name,)
        for kind in kinds:
            inner = schemas.get(kind.get("$ref", "").rpartition("/")[2], {})
            yield from ((name, *path) for path in numbers_of(inner, schemas))


def fields() -> Iterator[tuple[str, tuple[str, ...]]]:
    document = create_app(Settings(model="tiny", store="none")).openapi()
    schemas = document["components"]["schemas"]
    for path in BODIES:
        content = document["paths"][path]["post"]["requestBody"]["content"]["application/json"]
        body = schemas[content["schema"]["$ref"].rpartition("/")[2]]
        yield from ((path, field) for field in dict.fromkeys(numbers_of(body, schemas)))


FIELDS = list(fields())


@pytest.fixture(scope="module")
def client(tiny_url: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=tiny_url, timeout=60) as client:
        yield client


def changed(body: Mapping[str, Any], path: tuple[str, ...], value: float) -> dict[str, Any]:
    name, *rest = path
    return {**body, name: changed(body.get(name, {}), tuple(rest), value) if rest else value}


def test_the_numbers_of_every_group_are_found() -> None:
    assert {".".join(field) for path, field in FIELDS if path == "/v1/answers"} >= {
        "temperature",
        "top_p",
        "timeout_seconds",
        "adapt.rollouts.temperature",
        "adapt.loss.kl",
        "adapt.optimizer.learning_rate",
        "adapt.optimizer.max_seconds",
    }
    assert ("/v1/completions", ("ttt", "adapt", "loss", "ntp")) in FIELDS


@pytest.mark.parametrize(("path", "field"), FIELDS)
def test_an_extreme_number_is_served_or_refused_by_name(
    client: httpx.Client, path: str, field: tuple[str, ...]
) -> None:
    body = BODIES[path]
    if field[0] == "ttt":
        body = {**body, "ttt": {"document": DOCUMENT, "adapt": STEP}}
    for value in EXTREMES:
        response = client.post(path, json=changed(body, field, value))
        if response.status_code == 422:
            assert ".".join(field).startswith(response.json()["error"]["param"])
        elif response.status_code == 504:
            assert field == ("timeout_seconds",)  # it got what it asked for
        else:
            assert response.is_success, (value, response.text)


@pytest.mark.parametrize("extreme", [{"temperature": t} for t in (1e-320, 1e-45, 1e-40, -0.0)])
def test_a_temperature_of_almost_nothing_answers_as_zero_does(
    client: httpx.Client, extreme: dict[str, float]
) -> None:
    def write(path: str, **options: object) -> str:
        choices = client.post(path, json={**BODIES[path], **options}).json()
        return str(choices["choices"])

    for path in ("/v1/completions", "/v1/chat/completions"):
        assert write(path, **extreme, max_tokens=8) == write(path, temperature=0, max_tokens=8)


@pytest.mark.parametrize("top_p", [5e-324, 1e-320, 1e-50, 1e-40, 1e-30])
def test_a_top_p_of_almost_nothing_answers_as_temperature_zero_does(
    client: httpx.Client, top_p: float
) -> None:
    def answer(**sampling: float) -> str:
        body = {**ASK, "max_tokens": 8, **sampling}
        return str(client.post("/v1/answers", json=body).json()["answer"])

    assert answer(temperature=1.0, top_p=top_p) == answer(temperature=0.0)
