"""Reading and writing data sets by rows; errors name the file and the row."""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from refine_server.benchmarks.common.files import whole_file

T = TypeVar("T")


class DataError(ValueError):
    """A file that cannot be used; the message names it and says what to change."""


def read_rows(path: Path, parse: Callable[[Mapping[str, Any]], T]) -> Iterator[T]:
    """Yield the rows of a ``.jsonl`` or ``.parquet`` file, each parsed by ``parse``.

    Raises:
        DataError: the file is missing or has another format, or ``parse`` refused a row.
    """
    rows = _parquet(path) if path.suffix == ".parquet" else _json_lines(path)
    for number, row in rows:
        try:
            yield parse(row)
        except KeyError as error:
            raise DataError(f"{path}, row {number}: the field {error} is missing") from None
        except (ValueError, TypeError) as error:
            raise DataError(f"{path}, row {number}: {error}") from None


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> int:
    """Write rows as JSON lines; return their number. If a row fails, there is no file."""
    count = 0
    with whole_file(path) as partial, partial.open("w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
            count += 1
    return count


def _json_lines(path: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    try:
        with path.open(encoding="utf-8-sig") as lines:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    yield number, _object(line, path, number)
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text: {error.reason}") from None


def _object(line: str, path: Path, number: int) -> Mapping[str, Any]:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise DataError(f"{path}, row {number}: not valid JSON: {error}") from None
    if not isinstance(row, dict):
        raise DataError(f"{path}, row {number}: must be a JSON object")
    return row


def _parquet(path: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            number = 0
            for batch in file.iter_batches(batch_size=16):
                for row in batch.to_pylist():
                    number += 1
                    yield number, row
    except OSError as error:
        raise DataError(f"cannot read {path}: {error}") from None
    except pyarrow.ArrowInvalid as error:
        raise DataError(f"{path} is not a parquet file: {error}") from None
