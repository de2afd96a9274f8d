"""Options in a TOML file, which have the names of the flags: ``max_queue = 64``."""

import tomllib
from pathlib import Path
from typing import Any

from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource
from typing_extensions import override

NOT_IN_FILE = {
    "config_file": "is the file itself",
    "api_keys": "would be readable in the file; use api_keys_file, which has only hashes",
}
"""Options that a file cannot set, and why."""


class SettingsFileError(ValueError):
    """The file cannot be used; the message names it."""


class SettingsFile(PydanticBaseSettingsSource):
    """The source of settings that comes last: the file that a flag or a variable names."""

    @override
    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:
        return None, field_name, False  # all fields come at once, from __call__

    @override
    def __call__(self) -> dict[str, Any]:
        path = self.current_state.get("config_file")
        return {} if path is None else read_options(Path(path), set(self.settings_cls.model_fields))


class FileSettings(BaseSettings):
    """Settings from arguments and variables first, and then from the file that they name."""

    @classmethod
    @override
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return init_settings, env_settings, SettingsFile(settings_cls)


def read_options(path: Path, names: set[str]) -> dict[str, Any]:
    """Read a file's options by their names.

    Args:
        path: the file.
        names: the options that there are.

    Raises:
        SettingsFileError: the file cannot be read, is not TOML, or has an unknown option.
    """
    where = f"--config-file {path}"
    try:
        text = path.read_text(encoding="utf-8-sig")
        options = tomllib.loads(text)
    except OSError as error:
        raise SettingsFileError(f"{where} cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise SettingsFileError(f"{where} is not TOML text in UTF-8: {error}") from None
    options = {name.replace("-", "_"): value for name, value in options.items()}
    for name in options:
        if name in NOT_IN_FILE:
            raise SettingsFileError(f"{where}: {name} {NOT_IN_FILE[name]}")
        if name not in names:
            raise SettingsFileError(f"{where}: there is no option {name}; see docs/settings.md")
    return options
