"""What the commands of ``refine-server bench`` share: options, lists, and printed results."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

import typer

if TYPE_CHECKING:  # httpx takes 0.1 s to import, and --help must be quick
    from refine_server.clients.options import AdaptOptions
    from refine_server.ttt.interface.config import AdaptConfig

LOCAL = "http://127.0.0.1:8000"
OBJECTIVES = ("none", "ntp", "refine")

ModelName = Annotated[
    str,
    typer.Option(help="Model: smollm2, tiny, tiny-nested, a directory or a hub id (owner/name)."),
]
Adapt = Annotated[
    str,
    typer.Option(
        metavar="PRESET|JSON",
        help="Settings of the adaptation: a preset (fast, balanced, thorough, paper), or the "
        "fields of the request's `adapt` object that differ from the defaults, as a JSON object "
        "without `objective`.",
    ),
]
AnswerTokens = Annotated[int, typer.Option(min=1, help="Maximum length of an answer in tokens.")]
DocumentLengths = Annotated[
    str,
    typer.Option(
        help="Document lengths in tokens as TOKENS or TOKENS:WEIGHT, separated by commas; a "
        "length with a higher weight is drawn more often."
    ),
]
Repeats = Annotated[
    int, typer.Option(min=1, help="Number of measured rounds; medians over them are reported.")
]
Threads = Annotated[
    int | None,
    typer.Option(min=1, help="CPU threads for one operation. Default: chosen automatically."),
]
Url = Annotated[str, typer.Option(help="URL of the server.")]
TokenizerName = Annotated[
    str | None,
    typer.Option(
        "--tokenizer",
        help="Tokenizer that counts lengths: a tokenizer.json, a directory or a hub id. "
        "Default: the tokenizer of the server.",
    ),
]
Examples = Annotated[Path, typer.Option(help="Directory with example files (JSON).")]
Part = Literal["dev", "heldout"]
PartOfDocuments = Annotated[
    Part,
    typer.Option(help="Part of the documents: dev to choose settings, heldout for results."),
]
Seed = Annotated[int, typer.Option(help="Random seed of all that the benchmark draws.")]
OutFolder = Annotated[Path, typer.Option(help="Folder to write the results to.")]
Resume = Annotated[
    bool, typer.Option("--resume", help="Continue the run in --out, with the same settings.")
]
Traces = Annotated[
    bool,
    typer.Option(
        "--traces",
        help="Store where the rollouts of each step started, the entropy there, their tokens and "
        "their rewards with each answer, up to 1 MiB for an answer.",
    ),
]
AsJson = Annotated[
    bool, typer.Option("--json", help="Print the result as one JSON object in the last line.")
]


def names_of(text: str | None) -> list[str]:
    """Split a list of names at its commas."""
    return [name.strip() for name in (text or "").split(",") if name.strip()]


def numbers_of(text: str, option: str) -> list[int]:
    """Parse a list of positive numbers, separated by commas."""
    try:
        numbers = [int(name) for name in names_of(text)]
    except ValueError:
        numbers = []
    if not numbers or min(numbers) < 1:
        raise typer.BadParameter(f"{option} must be positive integers, separated by commas")
    return numbers


def objectives_of(text: str) -> list[str]:
    """Parse a list of objectives, separated by commas."""
    names = names_of(text)
    if not names or len(set(names)) < len(names) or not set(names) <= set(OBJECTIVES):
        allowed = ", ".join(OBJECTIVES)
        raise typer.BadParameter(f"--objectives must be some of {allowed}, each once")
    return names


def adapt_of(text: str) -> "AdaptOptions":
    """Parse a preset or the fields of ``adapt`` from JSON; the server checks their values.

    Raises:
        InvalidArgumentError: a value cannot be sent, such as NaN, which Python's parser accepts.
    """
    from refine_server.clients.arguments import encode_body
    from refine_server.ttt.interface.presets import parse_adapt

    try:
        fields = parse_adapt(text)
        encode_body({"--adapt": fields})
    except ValueError as error:
        raise typer.BadParameter(f"--adapt {error}") from None
    if "objective" in fields:
        raise typer.BadParameter("--adapt must be without `objective`, which the benchmark sets")
    return cast("AdaptOptions", fields)


def traced(adapt: "AdaptOptions", traces: bool) -> "AdaptOptions":
    """Return the settings with traces, if they are asked for."""
    return {**adapt, "trace": True} if traces else adapt


def adapt_config_of(text: str) -> "AdaptConfig":
    """Parse a preset or the fields of ``adapt`` from JSON, and check their values."""
    from pydantic import ValidationError

    from refine_server.ttt.interface.config import AdaptConfig
    from refine_server.ttt.interface.plain_words import problems

    try:
        return AdaptConfig.model_validate(adapt_of(text))
    except ValidationError as error:
        raise typer.BadParameter(f"--adapt: {problems(error)}") from None


def print_result(result: dict[str, Any], as_json: bool) -> None:
    """Print one line for each field and, if ``as_json``, the whole result as the last line."""
    for name, value in result.items():
        typer.echo(
            f"{name:>24}  {value:.4g}" if isinstance(value, float) else f"{name:>24}  {value}"
        )
    if as_json:
        typer.echo(json.dumps(result, ensure_ascii=False))
