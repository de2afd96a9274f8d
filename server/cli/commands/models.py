"""``refine-server models``: list, inspect and convert models."""

import json
import re
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from refine_server.server.cli.exit import InputError

if TYPE_CHECKING:
    import torch

    from refine_server.ttt.footprint.figures import Figures

app = typer.Typer(no_args_is_help=True, help="List, inspect and convert models.")

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]
Dtype = Literal["float32", "bfloat16", "float16", "float64"]
CHAT = "written by the tokenizer's chat template"
PLAIN = "plain text, because the tokenizer has no chat template"
ANY_LENGTH = "any length: the model was trained for no number of positions"
UNITS = {"": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}


@app.command(name="list")
def list_models(as_json: AsJson = False) -> None:
    """List the bundled models and the supported model families.

    A directory or a hub id can be served if the model_type in its config.json belongs to one of
    these families.
    """
    from refine_server.ttt.models import bundled
    from refine_server.ttt.models.families import model_types

    families = model_types()
    if as_json:
        typer.echo(json.dumps({"bundled": sorted(bundled.MODELS), "families": families}))
        return
    typer.echo("bundled    " + ", ".join(sorted(bundled.MODELS)))
    for name, types in families.items():
        typer.echo(f"{name:<16} model_type {', '.join(types)}")


@app.command()
def inspect(
    model: Annotated[
        str,
        typer.Argument(help="smollm2, tiny, tiny-nested, a directory or a hub id (owner/name)."),
    ],
    memory: Annotated[
        str | None,
        typer.Option(
            help="Memory that the server's process may take, e.g. 80GiB. Default: that of the "
            "server, --memory-bytes (REFINE_MEMORY_BYTES) or the machine's."
        ),
    ] = None,
    targets: Annotated[
        Literal["fast_weights", "low_rank", "all"],
        typer.Option(
            help="Weights that each request has its own copy of: the model's fast weights, "
            "LoRA of its projections, or all weights."
        ),
    ] = "low_rank",
    rank: Annotated[int, typer.Option(min=1, help="Rank of the LoRA.")] = 8,
    dtype: Annotated[
        Dtype | None,
        typer.Option(help="Data type of the base weights. Default: that of the checkpoint."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show a model's number of parameters and the memory that it needs.

    All sizes are computed from the model's configuration; no weights are read or downloaded.
    """
    from refine_server.ttt.footprint.figures import measure

    figures = measure(
        model,
        dtype=_dtype(dtype),
        targets=targets,
        rank=rank,
        memory_bytes=_server_memory() if memory is None else _bytes(memory),
    )
    typer.echo(json.dumps(asdict(figures)) if as_json else _table(figures))


@app.command()
def convert(
    source: Annotated[
        str, typer.Argument(help="Model name, directory, hub id (owner/name) or GGUF file.")
    ],
    target: Annotated[Path, typer.Argument(help="Directory to create; it must not exist.")],
    dtype: Annotated[
        Dtype | None,
        typer.Option(help="Data type of the written weights. Default: that of the source."),
    ] = None,
) -> None:
    """Convert a model to a directory of safetensors that the server can load."""
    from refine_server.ttt.models.loading.convert import convert as write

    write(source, target, _dtype(dtype))
    typer.echo(f"wrote {target}")


def _dtype(name: str | None) -> "torch.dtype | None":
    import torch

    return None if name is None else getattr(torch, name)


def _bytes(text: str) -> int:
    """Parse ``80GiB``, ``512MiB`` or a plain number of bytes."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]iB)?", text.strip())
    if match is None:
        raise InputError(
            f"--memory {text!r}: write a number of bytes, or one with KiB, MiB, GiB or TiB"
        )
    return int(float(match[1]) * UNITS[match[2] or ""])


def _server_memory() -> int:
    """Return what the server's process may take, by its own settings."""
    from refine_server.server.memory.device import memory_of
    from refine_server.server.settings import read_settings

    settings = read_settings()
    return settings.memory_bytes or memory_of(settings.device).default_budget()


def _format_bytes(size: float) -> str:
    for unit in ("TiB", "GiB", "MiB", "KiB"):
        if size >= UNITS[unit]:
            return f"{size / UNITS[unit]:.2f} {unit}"
    return f"{size:.0f} B"


def _table(figures: "Figures") -> str:
    """One line for each figure."""
    (short, at_short), (long, at_long) = sorted(figures.state_bytes.items())
    growth = (at_long - at_short) / (long - short)
    state = f"{_format_bytes(at_short)} at {short} tokens, "
    state += f"{_format_bytes(growth)} for each further token" if growth else "at any length"
    peaks = (f"{_format_bytes(n)} at {T:,} tokens" for T, n in figures.peak_bytes.items())
    longest = figures.context_length
    rows = [
        ("model", figures.name),
        ("family", f"{figures.family} (model_type {figures.model_type})"),
        ("prompts", CHAT if figures.has_chat_template else PLAIN),
        ("context", ANY_LENGTH if longest is None else f"{longest:,} tokens, answer included"),
        ("parameters", f"{figures.parameters:,}"),
        ("base weights", f"{_format_bytes(figures.weight_bytes)} in {figures.dtype}"),
        (
            "fast weights",
            f"{_format_bytes(figures.fast_weight_bytes)} for each request ({figures.targets}); "
            "4 times that while it adapts with AdamW",
        ),
        ("state", f"{state} (kept for an adapted document)"),
        ("peak", f"{', '.join(peaks)}, of the process that adapts to one document"),
        (
            "longest document",
            f"{figures.longest_document:,} tokens can be adapted to in "
            f"{_format_bytes(figures.memory_bytes)} (--memory-bytes)",
        ),
    ]
    return "\n".join(f"{name:<18}{value}" for name, value in rows)
