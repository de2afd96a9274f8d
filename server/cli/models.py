"""``refine-server models``: what can be served, and what serving it takes."""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

if TYPE_CHECKING:
    import torch

    from refine_server.ttt.models.loading.footprint import Figures

BAD_INPUT = 2

app = typer.Typer(no_args_is_help=True, help="List, inspect and convert models.")

JSON = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
Dtype = Literal["float32", "bfloat16", "float16", "float64"]
UNITS = {"": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}


@app.callback()
def _models() -> None:
    """List, inspect and convert models."""


@app.command(name="list")
def list_models(as_json: JSON = False) -> None:
    """Embedded models, and the families that a directory or a hub id may be of."""
    from refine_server.ttt.models import bundled
    from refine_server.ttt.models.families import model_types

    families = model_types()
    if as_json:
        typer.echo(json.dumps({"embedded": sorted(bundled.MODELS), "families": families}))
        return
    typer.echo("embedded   " + ", ".join(sorted(bundled.MODELS)))
    for name, types in families.items():
        typer.echo(f"{name:<16} model_type {', '.join(types)}")


@app.command()
def inspect(
    model: Annotated[str, typer.Argument(help="smollm2, tiny, a directory or a hub id.")],
    memory: Annotated[
        str | None, typer.Option(help="Memory to fit a document into, e.g. 80GiB.")
    ] = None,
    targets: Annotated[
        Literal["fast_weights", "low_rank", "all"], typer.Option(help="What a request owns.")
    ] = "fast_weights",
    rank: Annotated[int, typer.Option(min=1, help="Of low-rank deltas.")] = 8,
    dtype: Annotated[
        Dtype | None, typer.Option(help="Of the base weights; the checkpoint's by default.")
    ] = None,
    as_json: JSON = False,
) -> None:
    """Parameters and bytes of a model, computed from its configuration alone."""
    with _told_plainly():
        from refine_server.ttt.models.loading.footprint import measure

        figures = measure(
            model,
            dtype=_dtype(dtype),
            targets=targets,
            rank=rank,
            memory_bytes=None if memory is None else _bytes(memory),
        )
    typer.echo(json.dumps(asdict(figures)) if as_json else _table(figures))


@app.command()
def convert(
    source: Annotated[str, typer.Argument(help="Name, directory, hub id or GGUF file.")],
    target: Annotated[Path, typer.Argument(help="Directory to write.")],
    dtype: Annotated[
        Dtype | None, typer.Option(help="Of the weights; the source's by default.")
    ] = None,
) -> None:
    """Write a model as safetensors in a directory that the server loads."""
    with _told_plainly():
        from refine_server.ttt.models.loading.convert import convert as write

        write(source, target, _dtype(dtype))
    typer.echo(f"wrote {target}")


def _dtype(name: str | None) -> "torch.dtype | None":
    import torch

    return None if name is None else getattr(torch, name)


def _bytes(text: str) -> int:
    """Bytes of ``80GiB``, ``512MiB`` or a plain number."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]iB)?", text.strip())
    if match is None:
        raise typer.BadParameter(f"--memory {text!r}: write a number with KiB, MiB, GiB or TiB")
    return int(float(match[1]) * UNITS[match[2] or ""])


def _shown(size: float) -> str:
    for unit in ("TiB", "GiB", "MiB", "KiB"):
        if size >= UNITS[unit]:
            return f"{size / UNITS[unit]:.2f} {unit}"
    return f"{size:.0f} B"


def _table(figures: "Figures") -> str:
    (short, at_short), (long, at_long) = sorted(figures.state_bytes.items())
    growth = (at_long - at_short) / (long - short)
    state = f"{_shown(at_short)} at {short} tokens, "
    state += f"{_shown(growth)} more a token" if growth else "whatever its length"
    (_, step_short), (_, step_long) = sorted(figures.step_bytes.items())
    step = (step_long - step_short) / (long - short)
    rows = [
        ("model", figures.name),
        ("family", f"{figures.family} (model_type {figures.model_type})"),
        ("parameters", f"{figures.parameters:,}"),
        ("base weights", f"{_shown(figures.weight_bytes)} in {figures.dtype}"),
        (
            "fast weights",
            f"{_shown(figures.fast_weight_bytes)} a request ({figures.targets}); "
            "4 times that while adapting with AdamW",
        ),
        ("state", f"{state} (an adapted document)"),
        ("adaptation step", f"{_shown(step)} a token, kept until its backward pass"),
    ]
    if figures.memory_bytes is not None:
        longest = (
            f"{figures.longest_document:,} tokens adapted on in {_shown(figures.memory_bytes)}"
        )
        rows.append(("longest document", longest))
    return "\n".join(f"{name:<18}{value}" for name, value in rows)


@contextmanager
def _told_plainly() -> Iterator[None]:
    """One line on stderr instead of a traceback, for whatever a user can put right."""
    from refine_server.ttt.models.base import ModelError

    try:
        yield
    except ModelError as error:
        typer.echo(f"refine-server: {error}", err=True)
        raise typer.Exit(BAD_INPUT) from None
