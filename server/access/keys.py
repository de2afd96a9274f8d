"""API keys, of which only hashes are stored, and the quotas of each key."""

import hashlib
import hmac
import json
import re
import secrets
import tomllib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from refine_server.server.settings import Settings, SettingsError
from refine_server.ttt.interface.plain_words import problems
from refine_server.ttt.interface.requests import LOCAL

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
KEY = re.compile(r"[!-~]+")
MIN_KEY_LENGTH = 16
"""Characters of a key that is chosen by hand. Hashes are unsalted, so a key has to be long."""
KEY_PREFIX = "refine-"
KEY_BYTES = 32
"""Random bytes of a key that this server creates."""

_STRICT = ConfigDict(extra="forbid", frozen=True, strict=True)

Count = Annotated[int, Field(ge=1)]
Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


def _as_list(value: object) -> object:
    return [value] if isinstance(value, str) else value


class Quotas(BaseModel):
    """What one key may use; None is no limit."""

    model_config = _STRICT

    requests_per_minute: Count | None = None
    concurrent_requests: Count | None = None
    document_tokens_per_hour: Count | None = None
    """Tokens of the documents that are adapted to."""
    adaptation_bytes: Annotated[int, Field(ge=0)] | None = None
    """Bytes of all kept adaptations together."""
    file_bytes: Annotated[int, Field(ge=0)] | None = None
    """Bytes of all files together."""


@dataclass(frozen=True)
class Principal:
    """The holder of an API key."""

    name: str
    """Name of the key; the owner of everything that is created with it."""
    quotas: Quotas = Quotas()


ANYONE = Principal(LOCAL)
"""Every client of a server that has no keys."""


class KeyEntry(BaseModel):
    """One entry of a key file."""

    model_config = _STRICT

    name: str
    sha256: Annotated[list[Sha256], Field(min_length=1), BeforeValidator(_as_list)]
    """Hashes of the keys with this name; two while an old key is being replaced by a new one."""
    quotas: Quotas = Quotas()

    def toml(self) -> str:
        """Format the entry for a key file."""
        return f'[[keys]]\nname = "{self.name}"\nsha256 = "{self.sha256[0]}"\n'


class _KeyFile(BaseModel):
    model_config = _STRICT

    keys: list[KeyEntry] = Field(min_length=1)


def new_key(name: str) -> tuple[str, KeyEntry]:
    """Create a key of 256 random bits, and the entry that recognises it.

    Raises:
        SettingsError: the name is not valid for a key.
    """
    _check_name(name, "NAME")
    key = KEY_PREFIX + secrets.token_urlsafe(KEY_BYTES)
    return key, KeyEntry(name=name, sha256=[_sha256(key)])


class Keyring:
    """All keys of a server. Without keys the server is open, and every client is ``ANYONE``.

    The event loop may replace them while requests are served; other threads only read.
    """

    def __init__(self, entries: Sequence[KeyEntry] = ()) -> None:
        self.replace(entries)

    def replace(self, entries: Sequence[KeyEntry]) -> None:
        """Let these be the keys from now on."""
        self.entries = tuple(entries)
        self.principals = {e.name: Principal(e.name, e.quotas) for e in entries}
        """The holders of all keys, by name."""

    @classmethod
    def of(cls, settings: Settings) -> "Keyring":
        """Read the keys of ``api_keys_file`` and ``api_keys``.

        Raises:
            SettingsError: the file or the variable is invalid, or a name or a key occurs twice.
        """
        return cls(cls.read_entries(settings))

    @staticmethod
    def read_entries(settings: Settings) -> Sequence[KeyEntry]:
        """Read the entries of all keys, as ``of``."""
        entries: list[KeyEntry] = []
        if settings.api_keys_file is not None:
            entries += _read_file(settings.api_keys_file)
        if settings.api_keys is not None:
            entries += _read_variable(settings.api_keys.get_secret_value())
        names = [entry.name for entry in entries]
        hashes = [sha256 for entry in entries for sha256 in entry.sha256]
        for field, values in (("name", names), ("sha256", hashes)):
            if repeated := [value for value, count in Counter(values).items() if count > 1]:
                raise SettingsError(f"API keys: the {field} {repeated[0]!r} occurs twice")
        return entries

    @property
    def is_open(self) -> bool:
        """Whether the server needs no key."""
        return not self.entries

    def quotas_of(self, owner: str) -> Quotas:
        """The quotas of an owner; there are none for an owner without a key."""
        return self.principals.get(owner, ANYONE).quotas

    def identify(self, key: str | None) -> Principal | None:
        """Return the holder of a key, None if the key is missing or unknown.

        Every entry is compared in constant time, so that the duration reveals nothing.
        """
        if self.is_open:
            return ANYONE
        if key is None:
            return None
        given = _sha256(key)
        found = None
        for entry in self.entries:
            for sha256 in entry.sha256:
                if hmac.compare_digest(given, sha256):
                    found = entry.name
        return None if found is None else self.principals.get(found)


def _sha256(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


def _check_name(name: str, where: str) -> None:
    if not NAME.fullmatch(name):
        allowed = "1 to 64 of the characters A-Z a-z 0-9 . _ - and begin with a letter or a digit"
        raise SettingsError(f"{where}: the name of a key must have {allowed}")
    if name == LOCAL:
        raise SettingsError(
            f"{where}: a key cannot be named {LOCAL!r}, the owner on a server without keys"
        )


def _read_file(path: Path) -> list[KeyEntry]:
    where = f"--api-keys-file {path}"
    try:
        text = path.read_text(encoding="utf-8-sig")
        parsed: Any = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
    except OSError as error:
        raise SettingsError(f"{where} cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError):
        # The parser's message quotes the file, which might contain a key by mistake.
        kind = "JSON" if path.suffix == ".json" else "TOML"
        raise SettingsError(f"{where} is not {kind} text in UTF-8") from None
    try:
        entries = _KeyFile.model_validate(parsed).keys
    except ValidationError as error:
        raise SettingsError(f"{where}: {problems(error)}") from None
    for entry in entries:
        _check_name(entry.name, where)
    return entries


def _read_variable(text: str) -> list[KeyEntry]:
    entries = []
    for number, pair in enumerate(text.split(","), start=1):
        where = f"REFINE_API_KEYS, entry {number}"
        name, colon, key = pair.strip().partition(":")
        if not colon:
            raise SettingsError(f"{where} must have the form name:key")
        _check_name(name, where)
        if len(key) < MIN_KEY_LENGTH or not KEY.fullmatch(key):
            needed = f"at least {MIN_KEY_LENGTH} printable ASCII characters and no space"
            raise SettingsError(f"{where}: the key of {name} must have {needed}")
        entries.append(KeyEntry(name=name, sha256=[_sha256(key)]))
    return entries
