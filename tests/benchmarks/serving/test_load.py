"""``bench load``: the requests, their arrival times, and the report."""

import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from refine_server.benchmarks.common.rows import DataError
from refine_server.benchmarks.common.tokens import FileTokenizer
from refine_server.benchmarks.serving.drive import Arrivals, Driver
from refine_server.benchmarks.serving.report import summary
from refine_server.benchmarks.serving.workload import Mix, Request
from refine_server.server.cli.main import app

TINY = str(Path(__file__).parents[3] / "ttt" / "models" / "bundled" / "tiny")
ONE = [Request("a document", "a question", 10, repeated=False)]


def load(scripted: Any, out: Path, *options: str) -> Result:
    command = ["load", "--url", scripted.url, "--tokenizer", TINY, "--out", str(out), "--json"]
    return CliRunner().invoke(app, ["bench", *command, "--lengths", "600", *options])


def test_a_mix_has_its_lengths_and_repeats() -> None:
    tokenizer = FileTokenizer(TINY)
    mix = Mix.parse("600:3,900", 0.4, seed=1)
    requests = mix.requests(60, tokenizer)
    assert requests == mix.requests(60, tokenizer)
    fresh = [r for r in requests if not r.repeated]
    assert len({r.document for r in fresh}) == len(fresh)
    assert 10 < 60 - len(fresh) < 40
    seen: set[str] = set()
    for request in requests:
        assert (request.document in seen) == request.repeated
        seen.add(request.document)
        assert len(tokenizer.encode(f"{request.document}{request.query}")) == pytest.approx(
            request.tokens, abs=40
        )
    sizes = Counter("long" if r.tokens > 500 else "short" for r in fresh)
    assert sizes["short"] > sizes["long"] > 0


@pytest.mark.parametrize("lengths", ["", "512:x", "512:-1", "512:0"])
def test_an_invalid_mix_is_refused(lengths: str) -> None:
    with pytest.raises(DataError, match="--lengths"):
        Mix.parse(lengths, 0.0, 0)


def test_clients_of_a_closed_loop_wait_for_their_answers(scripted: Any) -> None:
    scripted.seconds = 0.02
    level = Driver(scripted.url, "closed", {"objective": "none"}, 8).run(3, ONE * 12)
    assert scripted.most_active == 3
    assert len(level.requests) == 12
    for seen in level.requests:
        assert seen.answer is not None
        assert seen.first is not None
        assert 0.02 <= seen.first <= seen.total
        assert len(seen.gaps) == 2  # three letters
    assert level.seconds >= 4 * 0.02


def test_an_open_loop_does_not_wait_for_answers(scripted: Any) -> None:
    scripted.seconds = 0.3
    level = Driver(scripted.url, "poisson", {"objective": "none"}, 8, seed=5).run(50, ONE * 20)
    assert scripted.most_active > 5
    rng = random.Random("arrivals/5/50")
    due = 0.0
    for seen in level.requests:
        due += rng.expovariate(50)
        assert seen.due == pytest.approx(due)
        assert seen.total >= 0.3


def test_goodput_counts_answers_in_time_and_errors_are_reported(scripted: Any) -> None:
    def say(body: dict[str, Any]) -> str:
        if len(scripted.bodies) == 2:
            raise ValueError("no")
        return "fine"

    scripted.say = say
    level = Driver(scripted.url, "closed", {"objective": "ntp"}, 8).run(1, ONE * 5)
    level.requests[4].total = 99.0
    figures = summary(level, bound=30.0, dollars_per_hour=3.6)
    assert (figures["requests"], figures["answers"], figures["adapted"]) == (5, 4, 4)
    assert figures["errors"] == {"scripted": 1}
    assert figures["good_share"] == pytest.approx(3 / 5)
    assert figures["goodput_per_second"] == pytest.approx(3 / level.seconds)
    assert figures["tokens_per_second"] == pytest.approx(16 / level.seconds)
    assert figures["model_seconds_per_answer"] == pytest.approx(0.9)
    assert figures["dollars_per_answer"] == pytest.approx(0.001 * level.seconds / 4)
    assert figures["phases"]["queue"]["p99"] == pytest.approx(0.1)


@pytest.mark.parametrize("arrivals", ["closed", "poisson"])
def test_a_request_that_cannot_be_encoded_is_an_error_of_its_own(
    scripted: Any, arrivals: Arrivals
) -> None:
    requests = [*ONE, Request("a document", "\ud800", 10, repeated=False), *ONE]
    level = Driver(scripted.url, arrivals, {"objective": "none"}, 8).run(50, requests)
    figures = summary(level, bound=30.0, dollars_per_hour=None)
    assert (figures["requests"], figures["answers"]) == (3, 2)
    assert figures["errors"] == {"InvalidArgumentError": 1}
    assert len(scripted.bodies) == 2


def test_the_command_reports_each_level(scripted: Any, tmp_path: Path) -> None:
    completed = load(scripted, tmp_path, "--rates", "40,80", "--requests", "4", "--repeats", "0.5")
    assert completed.exit_code == 0, completed.output
    result = json.loads(completed.stdout.splitlines()[-1])
    assert [level["load"] for level in result["levels"]] == [40, 80]
    assert all(level["answers"] == 4 for level in result["levels"])
    assert scripted.bodies[0]["adapt"] == {"objective": "refine"}
    page = (tmp_path / "report.html").read_text()
    assert "Throughput and goodput" in page
    assert "data:image/png;base64," in page
    assert "between tokens" in (tmp_path / "report.md").read_text()


@pytest.mark.parametrize("options", [[], ["--rates", "1", "--clients", "1"], ["--clients", "1.5"]])
def test_invalid_levels_are_refused(scripted: Any, tmp_path: Path, options: list[str]) -> None:
    assert load(scripted, tmp_path, *options).exit_code == 2
    assert not scripted.bodies
