"""The page of all settings, in Markdown."""

from collections.abc import Iterator

from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from refine_server.server.settings import ENV_PREFIX, Settings
from refine_server.server.settings_file import NOT_IN_FILE

HEAD = """# Settings

The options of `refine-server serve`. Each is a flag, an environment variable, and a line of the
TOML file that `--config-file` (`REFINE_CONFIG_FILE`) names. The first that has a value wins, in
this order: flag, variable, file, default. An empty variable counts as unset; an unknown variable,
option or line is refused.

```toml
# refine.toml: refine-server serve --config-file refine.toml
model = "tiny"
port = 8080
api_keys_file = "keys.toml"
max_queue_seconds = 120
```

`refine-server check` takes the same options, tries what they name (keys, store, device, model,
address), says what has to be changed, and exits. API keys and quotas are read again on SIGHUP
([operations](operations.md#keys-and-quotas)); everything else needs a new process.

| flag | variable | default | |
|---|---|---|---|
"""


def settings_page() -> str:
    """Return the page: one row for each option, in the order of ``serve --help``."""
    return HEAD + "".join(f"| {' | '.join(row)} |\n" for row in _rows())


def _rows() -> Iterator[tuple[str, str, str, str]]:
    for name, field in Settings.model_fields.items():
        is_flag = name != "api_keys"
        flag = f"`--{name.replace('_', '-')}`" if is_flag else ""
        text = (field.description or "").replace("|", "\\|")
        if (allowed := _allowed(field)) is not None:
            text += f" {allowed}"
        if name in NOT_IN_FILE:
            text += " Not in a file."
        yield flag, f"`{ENV_PREFIX}{name.upper()}`", _default(field), text


def _default(field: FieldInfo) -> str:
    if field.default in (None, "", PydanticUndefined):
        return "none"
    if isinstance(field.default, bool):
        return str(field.default).lower()
    return f"`{field.default}`"


def _allowed(field: FieldInfo) -> str | None:
    """Describe the smallest and the largest value, where there are any."""
    bounds = {
        "ge": "at least",
        "gt": "more than",
        "le": "at most",
        "lt": "less than",
    }
    told = [
        f"{text} {getattr(constraint, name):.12g}"
        for constraint in field.metadata
        for name, text in bounds.items()
        if getattr(constraint, name, None) is not None
    ]
    return f"({', '.join(told)})" if told else None
