"""Every option of the server, each a ``serve`` flag and a ``REFINE_`` environment variable."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pydantic import Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, CliApp, SettingsConfigDict

from refine_server.ttt.interface.config import MAX_TOKENS
from refine_server.ttt.interface.requests import Limits

ENV_PREFIX = "REFINE_"

# Read by other rooms, or set by Kubernetes for a service that is called refine-server.
FOREIGN_VARIABLES = ("REFINE_API_KEY", "REFINE_CACHE_DIR", "REFINE_KERNELS", "REFINE_SERVER_")


MAX_TTL_SECONDS = 30 * 24 * 3600.0
SECRET_ARGUMENT = (
    "--api-keys: every user of the machine can read a command line; "
    "set REFINE_API_KEYS, or use --api-keys-file"
)


class SettingsError(ValueError):
    """An option that is unknown or has a bad value; the message names it."""


class Settings(BaseSettings):
    """Options of one server process."""

    model_config = SettingsConfigDict(
        env_prefix=ENV_PREFIX,
        env_ignore_empty=True,
        extra="forbid",
        frozen=True,
        cli_prog_name="refine-server serve",
        cli_kebab_case=True,
        cli_hide_none_type=True,
    )

    model: str = Field(
        "smollm2", min_length=1, description="smollm2, tiny, a directory or a hub id."
    )
    host: str = Field("127.0.0.1", description="Address to listen on.")
    port: int = Field(8000, ge=0, le=65535, description="Port to listen on; 0 takes a free one.")
    api_keys_file: Path | None = Field(
        None, description="TOML or JSON file of keys, as `refine-server keys new` prints them."
    )
    api_keys: SecretStr | None = Field(
        None, description="Keys as name:key,name:key; only from the environment, never a flag."
    )
    cors_origins: str = Field(
        "", description="Web origins whose pages may call the server, with commas between them."
    )
    device: str = Field("cpu", description="Torch device that holds the model.")
    dtype: Literal["auto", "float32", "bfloat16", "float64"] = Field(
        "auto", description="Type of the base weights; auto keeps the checkpoint's."
    )
    window: int | None = Field(
        None,
        ge=16,
        description="Most tokens that attention sees (overlay family), e.g. 512: states stay "
        "small, and what slid out is known from fast weights alone. By default all.",
    )
    threads: int | None = Field(
        None,
        ge=1,
        description="CPU threads that share an op. By default torch's choice; for a small model "
        "one, and requests at once share the cores instead.",
    )
    activation_memory_bytes: int = Field(
        4 * 2**30,
        ge=1,
        description="Memory for what one adaptation step keeps for its gradient; on longer "
        "documents it is computed again piece by piece, with the same result.",
    )
    prompt: str | None = Field(
        None,
        description="Text with {document} and then {query}; the default goes by the model's kind.",
    )
    chat: Literal["auto", "always", "never"] = Field(
        "auto", description="Put the prompt into the tokenizer's chat template."
    )
    max_body_bytes: int = Field(4 * 2**20, ge=1, description="Largest request body.")
    client_timeout_seconds: float = Field(
        30.0,
        gt=0,
        allow_inf_nan=False,
        description="Longest time that a client takes to send a request's head, then its body, and "
        "to read each piece of the response.",
    )
    max_document_tokens: int = Field(
        Limits().document_tokens, ge=1, description="Longest document."
    )
    max_query_tokens: int = Field(Limits().query_tokens, ge=1, description="Longest query.")
    max_tokens: int = Field(
        MAX_TOKENS,
        ge=1,
        le=MAX_TOKENS,
        description="Longest answer that a request may ask for, in tokens.",
    )
    max_active: int = Field(
        4, ge=1, le=256, description="Requests that take turns at the model; each owns memory."
    )
    max_batch: int = Field(
        8, ge=1, le=64, description="Requests whose steps are done at once; 1 batches nothing."
    )
    max_queue: int = Field(
        32, ge=0, description="Requests that may wait beyond these; more are refused with 429."
    )
    max_queue_seconds: float = Field(
        600.0,
        gt=0,
        allow_inf_nan=False,
        description="Work that may wait, in estimated seconds; more is refused with 429.",
    )
    request_timeout_seconds: float = Field(
        600.0,
        gt=0,
        allow_inf_nan=False,
        description="Longest time of a request, queueing included.",
    )
    adaptation_memory_bytes: int = Field(
        2 * 2**30, ge=0, description="Memory for adapted documents; the least used ones go first."
    )
    adaptation_ttl_seconds: float = Field(
        3600.0,
        gt=0,
        le=MAX_TTL_SECONDS,
        allow_inf_nan=False,
        description="How long an adaptation is kept after its last use, unless its request says.",
    )
    max_adaptations: int = Field(1000, ge=1, description="Adaptations that one owner may keep.")
    store: str = Field(
        "",
        description="Where adaptations outlive the process: a URL for fsspec (file://, s3://); "
        "empty: the cache directory; none: in memory only.",
    )
    store_timeout_seconds: float = Field(
        60.0, gt=0, allow_inf_nan=False, description="Longest time of one read or write there."
    )
    stall_seconds: float = Field(
        300.0,
        gt=0,
        allow_inf_nan=False,
        description="Not ready when one step of work takes longer than this.",
    )
    shutdown_seconds: float = Field(
        30.0,
        ge=0,
        allow_inf_nan=False,
        description="Time that running requests get to finish after SIGTERM.",
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="Least severe messages to log."
    )

    @property
    def allowed_origins(self) -> list[str]:
        """``cors_origins``, one by one."""
        return [origin.strip() for origin in self.cors_origins.split(",") if origin.strip()]

    @property
    def limits(self) -> Limits:
        """The longest document and query, as the answering loop takes them."""
        return Limits(self.max_document_tokens, self.max_query_tokens)


def read_settings(arguments: Sequence[str] = ()) -> Settings:
    """Settings from command-line arguments, then the environment, then the defaults.

    ``--help`` prints every option with its variable and exits.

    Raises:
        SettingsError: an unknown variable, or a bad value.
    """
    _refuse_unknown_variables()
    if any(argument.partition("=")[0] == "--api-keys" for argument in arguments):
        raise SettingsError(SECRET_ARGUMENT)
    try:
        return CliApp.run(Settings, cli_args=list(arguments), cli_show_env_vars=True)
    except ValidationError as error:
        problems = [f"{_option(e['loc'])}: {e['msg']}" for e in error.errors()]
        raise SettingsError("\n".join(problems)) from None


def _option(location: tuple[int | str, ...]) -> str:
    name = str(location[0]) if location else "settings"
    return f"--{name.replace('_', '-')} ({ENV_PREFIX}{name.upper()})"


def _refuse_unknown_variables() -> None:
    """A misspelt variable would otherwise be an option that silently keeps its default."""
    known = {ENV_PREFIX + name.upper() for name in Settings.model_fields}
    for variable in sorted(os.environ):
        if not variable.upper().startswith(ENV_PREFIX) or variable.upper() in known:
            continue
        if not variable.startswith(FOREIGN_VARIABLES):
            raise SettingsError(f"{variable}: no option has this environment variable")
