"""``bench beside``: chats alone, and beside another client's documents."""

import json
from collections.abc import Iterator

import pytest
from typer.testing import CliRunner

from refine_server.benchmarks.common.failures import RunFailedError
from refine_server.benchmarks.serving.beside import run
from refine_server.benchmarks.serving.workload import Request
from refine_server.server.app import create_app
from refine_server.server.cli.main import app
from refine_server.server.settings import Settings
from support.live_server import serving

DOCUMENT = Request("The harbour code is amber. " * 60, "harbour code", 400, repeated=False)


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    settings = Settings(model="tiny", store="none", shutdown_seconds=0.3, max_document_tokens=600)
    with serving(create_app(settings)) as url:
        yield url


def test_chats_are_timed_while_documents_are_answered(url: str) -> None:
    figures = run(url, [DOCUMENT], 4, {})
    assert figures["chats"] == 4
    assert figures["answers"] >= 1
    for side in ("alone", "beside"):
        measured = figures[side]
        assert 0 < measured["first_token_p50"] <= measured["first_token_p95"]
        assert measured["tokens_per_second"] > 0


def test_a_document_that_is_refused_ends_the_run(url: str) -> None:
    long = Request("word " * 3000, "what?", 3000, repeated=False)
    with pytest.raises(RunFailedError, match="document_too_long"):
        run(url, [long], 2, {"on_overflow": "error"})


def test_the_command_prints_its_figures(url: str) -> None:
    command = ["bench", "beside", "--url", url, "--lengths", "500", "--chats", "2", "--json"]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    assert set(json.loads(result.stdout.splitlines()[-1])) == {
        "chats",
        "alone",
        "beside",
        "extra_first_token_p95",
        "answers",
    }
