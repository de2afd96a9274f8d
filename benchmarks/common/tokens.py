"""Tokenizers for counting lengths: the served model's own, or one from a file."""

from pathlib import Path
from typing import Protocol

from tokenizers import Tokenizer as FastTokenizer

from refine_server.benchmarks.common.rows import DataError
from refine_server.clients import RefineClient


class Tokenizer(Protocol):
    """Encodes text to token ids and decodes them, without special tokens."""

    def encode(self, text: str) -> list[int]: ...

    def decode(self, ids: list[int]) -> str: ...


class FileTokenizer:
    """A ``tokenizer.json`` from a file, a directory or the hub."""

    def __init__(self, name: str) -> None:
        path = Path(name) / "tokenizer.json" if Path(name).is_dir() else Path(name)
        try:
            there = path.is_file()
            self._of = (
                FastTokenizer.from_file(str(path)) if there else FastTokenizer.from_pretrained(name)
            )
        except Exception as error:  # the package raises bare Exceptions
            raise DataError(f"--tokenizer: cannot read {name}: {error}") from None
        # A file may configure truncation, which would make all long texts equally long.
        self._of.no_truncation()

    def encode(self, text: str) -> list[int]:
        return list(self._of.encode(text, add_special_tokens=False).ids)

    def decode(self, ids: list[int]) -> str:
        return str(self._of.decode(ids, skip_special_tokens=True))


class ServerTokenizer:
    """The served model's tokenizer, used over HTTP."""

    def __init__(self, client: RefineClient) -> None:
        self._client = client

    def encode(self, text: str) -> list[int]:
        return self._client.tokenize(text)

    def decode(self, ids: list[int]) -> str:
        return self._client.detokenize(ids)
