"""``refine-server train``: make the models that come with the server."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from refine_server.ttt.training.tiny import Progress

app = typer.Typer(no_args_is_help=True, help="Train the models that come with the server.")


@app.callback()
def _train() -> None:
    """Train the models that come with the server."""


@app.command()
def tiny(
    out: Annotated[Path, typer.Option(help="Directory to write the model to.")],
    steps: Annotated[int | None, typer.Option(min=1, help="Optimiser steps.")] = None,
    seed: Annotated[int, typer.Option(help="Of the texts and of the initial weights.")] = 0,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue from the checkpoint in --out.")
    ] = False,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads.")] = 1,
    save_every: Annotated[int, typer.Option(min=1, help="Steps between two checkpoints.")] = 50,
    documents: Annotated[
        int, typer.Option(min=1, help="Test documents of each length, 8 questions on each.")
    ] = 25,
) -> None:
    """A tiny DeltaNet that answers from a document.

    A killed run continues with --resume and ends in the same weights. The last line is a JSON
    object with the share of exactly right answers for each document length.
    """
    import os

    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    import torch

    from refine_server.ttt.training.tiny import Recipe, Trainer

    torch.set_num_threads(threads)
    recipe = Recipe(seed=seed) if steps is None else Recipe(seed=seed, steps=steps)
    try:
        trainer = Trainer(recipe, out, resume=resume)
    except (FileNotFoundError, ValueError) as error:
        typer.echo(f"cannot resume: {error}", err=True)
        raise typer.Exit(2) from None
    trainer.run(_show, save_every=save_every)
    typer.echo("measuring exact match", err=True)
    typer.echo(json.dumps(trainer.finish(documents)))


def _show(progress: "Progress") -> None:
    """One line on a terminal, rewritten; in a log a line every ten steps."""
    import sys

    line = (
        f"step {progress.step}/{progress.steps}  loss {progress.loss:.3f}  "
        f"retrieved {progress.retrieved:.3f}  length {progress.length}  "
        f"tokens {progress.tokens / 1e6:.2f}M  {progress.seconds:.0f} s"
    )
    last = progress.step == progress.steps
    if sys.stderr.isatty():
        typer.echo(f"\r{line}\033[K", nl=last, err=True)
    elif last or progress.step % 10 == 0:
        typer.echo(line, err=True)
