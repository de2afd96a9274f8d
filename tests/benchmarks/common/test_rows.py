"""Data sets as they come from other machines."""

import json
from pathlib import Path

import pytest

from refine_server.benchmarks.common.rows import DataError, read_rows

ROWS = [{"text": "a\u2028b"}, {"text": "\ufeffc"}, {"text": "\U0001f980"}]


@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize("line_end", ["\n", "\r\n", "\n\n"])
@pytest.mark.parametrize("last", ["", "\n"])
def test_lines_are_read_as_editors_of_any_system_write_them(
    tmp_path: Path, mark: str, line_end: str, last: str
) -> None:
    file = tmp_path / "rows.jsonl"
    text = line_end.join(json.dumps(row, ensure_ascii=False) for row in ROWS)
    file.write_bytes((mark + text + last).encode())
    assert list(read_rows(file, dict)) == ROWS


@pytest.mark.parametrize("content", ["\ufeff{".encode(), "{}\n\ufeff{}".encode()])
def test_a_line_that_is_no_json_is_named(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_bytes(content)
    with pytest.raises(DataError, match="not valid JSON"):
        list(read_rows(file, dict))


def test_another_encoding_is_named(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_bytes("{}".encode("utf-16"))
    with pytest.raises(DataError, match="is not UTF-8 text"):
        list(read_rows(file, dict))
