"""Who may ask: API keys, of which only hashes are kept, and what each key may use."""

import hashlib
import hmac
import json
import re
import secrets
import tomllib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from refine_server.server.settings import Settings, SettingsError
from refine_server.ttt.interface.requests import LOCAL

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
KEY = re.compile(r"[!-~]+")
SHORTEST_KEY = 16
"""Characters of a key that is chosen by hand. Hashes are unsalted, so that a key has to be long."""
KEY_PREFIX = "refine-"
KEY_BYTES = 32

_STRICT = ConfigDict(extra="forbid", frozen=True, strict=True)

Count = Annotated[int, Field(ge=1)]
Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


def _listed(value: object) -> object:
    return [value] if isinstance(value, str) else value


class Quotas(BaseModel):
    """What one key may use; None is no limit."""

    model_config = _STRICT

    requests_per_minute: Count | None = None
    concurrent_requests: Count | None = None
    document_tokens_per_hour: Count | None = None
    adaptation_bytes: Annotated[int, Field(ge=0)] | None = None


@dataclass(frozen=True)
class Principal:
    """Who asks. ``name`` is the owner of all that is made for them."""

    name: str
    limits: Quotas = Quotas()


ANYONE = Principal(LOCAL)
"""Who asks a server without keys."""


class KeyEntry(BaseModel):
    """One entry of a key file: a name, the SHA-256 of its key or keys, and quotas.

    Two hashes let the old key and the new one both work while a key is being replaced.
    """

    model_config = _STRICT

    name: str
    sha256: Annotated[list[Sha256], Field(min_length=1), BeforeValidator(_listed)]
    quotas: Quotas = Quotas()

    def toml(self) -> str:
        """The entry as a key file has it."""
        return f'[[keys]]\nname = "{self.name}"\nsha256 = "{self.sha256[0]}"\n'


class _KeyFile(BaseModel):
    model_config = _STRICT

    keys: list[KeyEntry] = Field(min_length=1)


def new_key(name: str) -> tuple[str, KeyEntry]:
    """A fresh key of 256 random bits, to be shown once, and the entry that recognises it.

    Raises:
        SettingsError: the name cannot be a key's.
    """
    _check_name(name, "NAME")
    key = KEY_PREFIX + secrets.token_urlsafe(KEY_BYTES)
    return key, KeyEntry(name=name, sha256=[_sha256(key)])


@dataclass(frozen=True)
class Keyring:
    """All keys of a server. Without any, the server is open and everybody is ``ANYONE``."""

    entries: Sequence[KeyEntry] = ()

    @cached_property
    def principals(self) -> dict[str, Principal]:
        """Everybody who has a key, by name."""
        return {e.name: Principal(e.name, e.quotas) for e in self.entries}

    @classmethod
    def of(cls, settings: Settings) -> "Keyring":
        """The keys of ``api_keys_file`` and ``api_keys``.

        Raises:
            SettingsError: a file or a variable that is not as it should be, or two keys alike.
        """
        entries: list[KeyEntry] = []
        if settings.api_keys_file is not None:
            entries += _read_file(settings.api_keys_file)
        if settings.api_keys is not None:
            entries += _read_variable(settings.api_keys.get_secret_value())
        names = [entry.name for entry in entries]
        hashes = [sha256 for entry in entries for sha256 in entry.sha256]
        for what, values in (("name", names), ("sha256", hashes)):
            if twice := [value for value, times in Counter(values).items() if times > 1]:
                raise SettingsError(f"API keys: the {what} {twice[0]!r} is there twice")
        return cls(tuple(entries))

    @property
    def is_open(self) -> bool:
        """Whether no key is needed."""
        return not self.entries

    def quotas_of(self, owner: str) -> Quotas:
        """What an owner may use; there is no limit for one without a key."""
        return self.principals.get(owner, ANYONE).limits

    def identify(self, key: str | None) -> Principal | None:
        """Whose key it is, None when it is nobody's.

        Every entry is compared, each in constant time: how long it takes tells nothing.
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
        return None if found is None else self.principals[found]


def _sha256(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


def _check_name(name: str, where: str) -> None:
    if not NAME.fullmatch(name):
        allowed = "1 to 64 of A-Z a-z 0-9 . _ - and begins with a letter or a digit"
        raise SettingsError(f"{where}: the name of a key has {allowed}")
    if name == LOCAL:
        raise SettingsError(f"{where}: {LOCAL!r} is the owner on a server without keys")


def _read_file(path: Path) -> list[KeyEntry]:
    where = f"--api-keys-file {path}"
    try:
        text = path.read_text(encoding="utf-8")
        parsed: Any = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
    except OSError as error:
        raise SettingsError(f"{where}: cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError):
        # What the parser says quotes the file, which might hold a key by mistake.
        kind = "JSON" if path.suffix == ".json" else "TOML"
        raise SettingsError(f"{where}: this is no {kind} text in UTF-8") from None
    try:
        entries = _KeyFile.model_validate(parsed).keys
    except ValidationError as error:
        told = [f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()]
        raise SettingsError(f"{where}: {'; '.join(told)}") from None
    for entry in entries:
        _check_name(entry.name, where)
    return entries


def _read_variable(text: str) -> list[KeyEntry]:
    entries = []
    for number, pair in enumerate(text.split(","), start=1):
        where = f"REFINE_API_KEYS, entry {number}"
        name, colon, key = pair.strip().partition(":")
        if not colon:
            raise SettingsError(f"{where}: it must be name:key")
        _check_name(name, where)
        if len(key) < SHORTEST_KEY or not KEY.fullmatch(key):
            least = f"at least {SHORTEST_KEY} printable ASCII characters"
            raise SettingsError(f"{where}: the key of {name} must have {least} and no space")
        entries.append(KeyEntry(name=name, sha256=[_sha256(key)]))
    return entries
