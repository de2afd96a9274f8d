"""The server's options; each is a flag of ``serve`` and an environment variable ``REFINE_…``."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from pydantic import Field, SecretStr, ValidationError
from pydantic_settings import (
    CliApp,
    CliImplicitFlag,
    CliSuppress,
    SettingsConfigDict,
)

from refine_server.server.logs import LogFormat
from refine_server.server.settings_file import FileSettings, SettingsFileError
from refine_server.ttt.interface import plain_words
from refine_server.ttt.interface.config import MAX_ANSWER_TOKENS
from refine_server.ttt.interface.requests import Limits

ENV_PREFIX = "REFINE_"

OTHER_VARIABLES = ("REFINE_API_KEY", "REFINE_CACHE_DIR", "REFINE_KERNELS", "REFINE_SERVER_")
"""Prefixes of variables that are not options of the server: those that other parts read, and those
that Kubernetes sets for a service named refine-server."""

MAX_TTL_SECONDS = 30 * 24 * 3600.0

API_KEYS_ON_COMMAND_LINE = (
    "--api-keys is not accepted on the command line, which every user of the machine can read: "
    "set REFINE_API_KEYS, or use --api-keys-file"
)


class SettingsError(ValueError):
    """An option or a variable is unknown or invalid; the message names it."""


class Settings(FileSettings):
    """Options of one server process. A flag overrides its environment variable (env)."""

    model_config = SettingsConfigDict(
        env_prefix=ENV_PREFIX,
        env_ignore_empty=True,
        extra="forbid",
        frozen=True,
        cli_prog_name="refine-server serve",
        cli_kebab_case=True,
        cli_hide_none_type=True,
        cli_parse_none_str="unset",
    )

    config_file: Path | None = Field(
        None,
        description="TOML file with options by their names, e.g. max_queue = 64. Flags and "
        "variables override it.",
    )
    model: str = Field(
        "smollm2",
        min_length=1,
        description="Model to serve: smollm2, tiny, tiny-nested, a directory, or a hub id "
        "(owner/name), which is downloaded.",
    )
    host: str = Field(
        "127.0.0.1",
        description="Network address to listen on; 0.0.0.0 accepts connections from other hosts.",
    )
    port: int = Field(
        8000, ge=0, le=65535, description="TCP port to listen on; 0 chooses a free port."
    )
    unix_socket: Path | None = Field(
        None,
        description="Path of a Unix domain socket to listen on instead of --host and --port, for "
        "a proxy on the same machine. Who may connect is up to the permissions of its directory.",
    )
    root_path: str = Field(
        "",
        pattern=r"^(/[A-Za-z0-9._~-]+)*$",
        description="Path below which a proxy publishes the server, e.g. /refine. Requests may "
        "have it or not. Empty: none.",
    )
    api_keys_file: Path | None = Field(
        None,
        description="TOML or JSON file with the API keys, one entry each as `refine-server keys "
        "new` prints it. The variable REFINE_API_KEYS may have further keys, as name:key,name:key. "
        "Without API keys, every client may use the server.",
    )
    api_keys: CliSuppress[SecretStr | None] = Field(
        None, description="API keys as name:key,name:key; only as an environment variable."
    )
    """No flag, because every user of the machine can read a command line."""
    cors_origins: str = Field(
        "",
        description="Web origins whose pages may call the server, separated by commas, e.g. "
        "https://example.org. Empty: none.",
    )
    ui: CliImplicitFlag[bool] = Field(
        True,
        description="Serve a page at / that shows adaptations as they are made. Its files need no "
        "API key; what it asks the server does.",
    )
    device: str = Field(
        "cpu", description="Torch device that holds the model and runs it, e.g. cpu or cuda."
    )
    replicas: int = Field(
        1,
        ge=1,
        description="Number of processes that serve the model on this machine, behind Ray Serve "
        "(needs refine-server[ray]). They share the store, and each gets an equal part of the "
        "cores and of the memory.",
    )
    devices: str = Field(
        "",
        description="CUDA devices of the replicas, one for each, separated by commas, e.g. 0,1. "
        "Empty: --device.",
    )
    dtype: Literal["auto", "float32", "bfloat16", "float64"] = Field(
        "auto", description="Data type of the base weights; auto: that of the checkpoint."
    )
    window: int | None = Field(
        None,
        ge=16,
        description="Attention window in tokens, e.g. 512 (overlay family only). It bounds the "
        "memory of a document's state; tokens outside the window can only be recalled from the "
        "fast weights. Unset: no window.",
    )
    threads: int | None = Field(
        None,
        ge=1,
        description="CPU threads for one operation. Unset: 1 for a model of less than 10 million "
        "parameters, whose requests then share the cores; otherwise torch's choice.",
    )
    memory_bytes: int | None = Field(
        None,
        ge=1,
        description="Memory in bytes that the whole process may take, on a GPU that of the GPU: "
        "the model, kept adaptations, documents as they were read, and requests in work. What is "
        "kept makes room for requests; a request waits until it fits, and one that can never fit "
        "gets status 413. Unset: nine tenths of what is free on the machine, in its control group, "
        "or on the GPU, when the model is loaded.",
    )
    state_dtype: Literal["auto", "bfloat16"] = Field(
        "auto",
        description="Data type in which the states of documents are kept between requests; auto: "
        "that in which they were computed. bfloat16 halves the memory of float32 states and "
        "rounds them.",
    )
    prompt: str | None = Field(
        None,
        description="Prompt template: text with {document} and, after it, {query}. Unset: the "
        "document, an empty line and the query, which a base model gets after 'Question:'.",
    )
    chat: Literal["auto", "always", "never"] = Field(
        "auto",
        description="Whether the prompt is the user's message in the tokenizer's chat template; "
        "auto: if the tokenizer has one.",
    )
    max_body_bytes: int = Field(
        4 * 2**20,
        ge=1,
        description="Maximum size of a request's body in bytes; a larger one gets status 413.",
    )
    max_file_bytes: int = Field(
        32 * 2**20,
        ge=1,
        description="Maximum size of a file that is uploaded, in bytes; a larger one gets status "
        "413.",
    )
    max_document_pages: int = Field(
        2000,
        ge=1,
        description="Maximum number of pages of a PDF document that is uploaded.",
    )
    conversion_seconds: float = Field(
        30.0,
        ge=1,
        le=3600,
        description="Maximum time in seconds to read the text of an uploaded document.",
    )
    conversion_memory_bytes: int = Field(
        2**30,
        ge=2**27,
        description="Maximum memory, as address space in bytes, of a process that reads the text "
        "of an uploaded document. Two run at the same time, beside --memory-bytes.",
    )
    file_bytes: int = Field(
        2**30,
        ge=0,
        description="Maximum size of all files together, in bytes, outputs of batches included. "
        "Without a store they are in memory.",
    )
    file_ttl_seconds: float = Field(
        MAX_TTL_SECONDS,
        gt=0,
        le=MAX_TTL_SECONDS,
        allow_inf_nan=False,
        description="Time in seconds that a file is kept after its upload, unless its request sets "
        "expires_after.",
    )
    max_batch_lines: int = Field(
        50_000, ge=1, description="Maximum number of requests in the input of one batch."
    )
    max_batch_requests: int = Field(
        2,
        ge=1,
        description="Maximum number of requests of batches that are processed at the same time; "
        "one place at least is left to other requests, if there are two.",
    )
    client_timeout_seconds: float = Field(
        30.0,
        gt=0,
        allow_inf_nan=False,
        description="Maximum time in seconds that a client may take to send a request's head, to "
        "send its body, and to receive each part of the response.",
    )
    max_document_tokens: int = Field(
        Limits().document_tokens,
        ge=1,
        description="Maximum length of a document in tokens. It may have eight times as many "
        "characters, and 262144 in any case.",
    )
    max_query_tokens: int = Field(
        Limits().query_tokens, ge=1, description="Maximum length of a query in tokens."
    )
    max_tokens: int = Field(
        4096,
        ge=1,
        le=MAX_ANSWER_TOKENS,
        description="Maximum length of an answer, in tokens, that a request may ask for.",
    )
    max_active: int = Field(
        4,
        ge=1,
        le=256,
        description="Maximum number of requests that are processed at the same time, if there is "
        "memory for them (--memory-bytes).",
    )
    max_batch: int = Field(
        8,
        ge=1,
        le=64,
        description="Maximum number of requests whose steps run as one batch; 1: no batching.",
    )
    max_queue: int = Field(
        32,
        ge=0,
        description="Maximum number of requests that wait in the queue; further requests get "
        "status 429.",
    )
    max_queue_seconds: float = Field(
        600.0,
        gt=0,
        allow_inf_nan=False,
        description="Maximum amount of work that waits in the queue, in estimated seconds; further "
        "requests get status 429.",
    )
    request_timeout_seconds: float = Field(
        600.0,
        gt=0,
        allow_inf_nan=False,
        description="Maximum duration of a request in seconds, including its time in the queue; "
        "after that it ends with status 504.",
    )
    adaptation_ttl_seconds: float = Field(
        3600.0,
        gt=0,
        le=MAX_TTL_SECONDS,
        allow_inf_nan=False,
        description="Time in seconds that an adaptation is kept after its last use, unless its "
        "request sets ttl_seconds.",
    )
    max_adaptations: int = Field(
        1000, ge=1, description="Maximum number of adaptations that one API key may keep."
    )
    store: str = Field(
        "",
        description="Store in which adaptations, files and batches survive a restart: an fsspec "
        "URL, e.g. file:// or s3://. Empty: the cache directory (REFINE_CACHE_DIR); none: they are "
        "kept in memory only.",
    )
    store_bytes: int = Field(
        10 * 2**30,
        ge=1,
        description="Disk space in bytes that the store may take. When it is full, the adaptations "
        "that were not used for the longest time are deleted.",
    )
    store_timeout_seconds: float = Field(
        60.0,
        gt=0,
        allow_inf_nan=False,
        description="Maximum time in seconds for one read or write of the store.",
    )
    stall_seconds: float = Field(
        300.0,
        gt=0,
        allow_inf_nan=False,
        description="Time in seconds after which a single operation of the model counts as hung: "
        "the server then ends with status 1, so that a supervisor can restart it.",
    )
    shutdown_seconds: float = Field(
        30.0,
        ge=0,
        allow_inf_nan=False,
        description="Time in seconds that running requests get to finish after SIGTERM.",
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info",
        description="Minimum severity of the messages that are logged, on stderr. Requests to "
        "/health/live, /health/ready and /metrics are logged at debug.",
    )
    log_format: LogFormat = Field(
        "auto",
        description="Form of the log: text (for people) or json (one object a line); auto: text on "
        "a terminal, json otherwise.",
    )
    trusted_proxies: str = Field(
        "",
        description="Addresses or networks of reverse proxies, separated by commas, e.g. "
        "127.0.0.1,10.0.0.0/8: of requests that come from them the header X-Forwarded-For tells "
        "the client's address in the log. Empty: none.",
    )

    @property
    def allowed_origins(self) -> list[str]:
        """The origins in ``cors_origins``."""
        return [origin.strip() for origin in self.cors_origins.split(",") if origin.strip()]

    @property
    def proxies(self) -> list[str]:
        """The addresses in ``trusted_proxies``."""
        return [proxy.strip() for proxy in self.trusted_proxies.split(",") if proxy.strip()]

    @property
    def limits(self) -> Limits:
        """The maximum lengths of a document and a query."""
        return Limits(self.max_document_tokens, self.max_query_tokens)


def read_settings(arguments: Sequence[str] = ()) -> Settings:
    """Read the settings from command-line arguments, the environment, a file and the defaults.

    The first that has a value wins. ``--help`` prints every option with its variable and exits.

    Raises:
        SettingsError: a variable is unknown, a value is invalid, or the file cannot be used.
    """
    _refuse_unknown_variables()
    if any(argument.partition("=")[0] == "--api-keys" for argument in arguments):
        raise SettingsError(API_KEYS_ON_COMMAND_LINE)
    try:
        return CliApp.run(Settings, cli_args=list(arguments), cli_show_env_vars=True)
    except ValidationError as error:
        raise _settings_error(error) from None
    except SettingsFileError as error:
        raise SettingsError(str(error)) from None


def check_settings(options: Mapping[str, object]) -> Settings:
    """Return the settings with these options, by their names; the others as in ``read_settings``.

    Raises:
        SettingsError: an option is unknown, or a value is invalid.
    """
    _refuse_unknown_variables()
    try:
        return Settings.model_validate(options)
    except ValidationError as error:
        raise _settings_error(error) from None
    except SettingsFileError as error:
        raise SettingsError(str(error)) from None


def _settings_error(error: ValidationError) -> SettingsError:
    problems = [f"{_option(e['loc'])}: {plain_words.reason(e)}" for e in error.errors()]
    return SettingsError("\n".join(problems))


def _option(location: tuple[int | str, ...]) -> str:
    name = str(location[0]) if location else "settings"
    return f"--{name.replace('_', '-')} ({ENV_PREFIX}{name.upper()})"


def _refuse_unknown_variables() -> None:
    """Refuse a misspelt variable, whose option would otherwise silently keep its default."""
    known = {ENV_PREFIX + name.upper() for name in Settings.model_fields}
    for variable in sorted(os.environ):
        if not variable.upper().startswith(ENV_PREFIX) or variable.upper() in known:
            continue
        if not variable.startswith(OTHER_VARIABLES):
            raise SettingsError(
                f"{variable}: there is no such option; see refine-server serve --help"
            )
