"""``--quick`` changes defaults; what is given explicitly stays."""

from pathlib import Path
from typing import Any

import pytest

from refine_server.benchmarks.common.rows import DataError
from refine_server.benchmarks.quality.answers import cli as answers
from refine_server.benchmarks.quality.regimes import items
from support.command_line import run

Asked = tuple[list[int], int]
"""Lengths and number of documents that a command generates."""


@pytest.fixture
def generated(monkeypatch: pytest.MonkeyPatch) -> list[Asked]:
    """Record what is to be generated, and end the command there."""
    asked: list[Asked] = []

    def record(lengths: list[int], count: int, *_: Any) -> Any:
        asked.append((lengths, count))
        raise DataError("recorded")

    monkeypatch.setattr(items, "tiny_items", record)
    return asked


@pytest.mark.parametrize("bench", ["adaptation", "regimes"])
@pytest.mark.parametrize(
    ("given", "lengths", "documents"),
    [
        ([], None, None),
        (["--lengths", "160"], [160], None),
        (["--documents", "7"], None, 7),
        (["--documents", "7", "--lengths", "160,320"], [160, 320], 7),
    ],
)
def test_given_options_win(
    generated: list[Asked],
    tmp_path: Path,
    bench: str,
    given: list[str],
    lengths: list[int] | None,
    documents: int | None,
) -> None:
    run("bench", bench, "--model", "tiny", "--quick", *given, "--out", tmp_path)
    quick = {"adaptation": 2, "regimes": 4}[bench]
    assert generated == [(lengths or [512, 1024], documents or quick)]


def test_quick_generates_no_documents_beside_given_rows(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked: list[tuple[Any, ...]] = []

    def record(model: Any, data: Any, lengths: list[int], count: int, *_: Any) -> Any:
        asked.append((data, lengths, count))
        raise DataError("recorded")

    monkeypatch.setattr(answers, "_items", record)
    data = tmp_path / "rows.jsonl"
    run("bench", "adaptation", "--model", "tiny", "--quick", "--data", data, "--out", tmp_path)
    assert asked == [([data], [], 2)]
