"""``refine-server train``: make the models that come with the server, and models to be adapted."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

if TYPE_CHECKING:
    from refine_server.ttt.training.run import Progress

app = typer.Typer(no_args_is_help=True, help="Train the models that come with the server.")

Out = Annotated[Path, typer.Option(help="Directory to write the model to.")]
Steps = Annotated[int | None, typer.Option(min=1, help="Optimiser steps.")]
Seed = Annotated[int, typer.Option(help="Of everything that is drawn.")]
Resume = Annotated[bool, typer.Option("--resume", help="Continue from the checkpoint in --out.")]
Threads = Annotated[int, typer.Option(min=1, help="CPU threads.")]
SaveEvery = Annotated[int, typer.Option(min=1, help="Steps between two checkpoints.")]
Documents = Annotated[
    int, typer.Option(min=1, help="Test documents of each length, 8 questions on each.")
]
Model = Annotated[str, typer.Option(help="The model to start from: a name or a directory.")]


@app.callback()
def _train() -> None:
    """Train the models that come with the server."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


@app.command()
def tiny(
    out: Out,
    steps: Steps = None,
    seed: Seed = 0,
    resume: Resume = False,
    threads: Threads = 1,
    save_every: SaveEvery = 50,
    documents: Documents = 25,
) -> None:
    """A tiny DeltaNet that answers from a document.

    A killed run continues with --resume and ends in the same weights. The last line is a JSON
    object with the share of exactly right answers for each document length.
    """
    from refine_server.ttt.training.tiny import Recipe, Trainer

    recipe = Recipe(seed=seed) if steps is None else Recipe(seed=seed, steps=steps)
    with _refusals(threads):
        trainer = Trainer(recipe, out, resume=resume)
    trainer.run(_show, save_every=save_every)
    typer.echo("measuring exact match", err=True)
    typer.echo(json.dumps(trainer.finish(documents)))


@app.command()
def nested(
    out: Out,
    model: Model = "tiny",
    stage: Annotated[
        Literal["first", "many_facts"],
        typer.Option(help="Of tiny-nested: the second goes on from the first one's result."),
    ] = "first",
    steps: Steps = None,
    seed: Annotated[
        int | None, typer.Option(help="Of everything drawn, if not the stage's.")
    ] = None,
    resume: Resume = False,
    threads: Threads = 1,
    save_every: SaveEvery = 25,
    documents: Documents = 25,
) -> None:
    """Nested post-training: adapt on documents inside, lower the loss of their questions outside.

    The model must have the tiny model's tokenizer. A killed run continues with --resume and ends
    in the same weights. The last line is a JSON object with the unadapted model's share of exactly
    right answers for each document length.
    """
    from refine_server.ttt.models.loading.loader import find, load
    from refine_server.ttt.training import evaluate
    from refine_server.ttt.training.nested import RECIPES, Trainer

    own = RECIPES[stage]
    recipe = replace(own, steps=steps or own.steps, seed=own.seed if seed is None else seed)
    with _refusals(threads):
        base = load(model)
        trainer = Trainer(recipe, base, out, resume=resume)
    trainer.run(_show, save_every=save_every)
    typer.echo("measuring exact match", err=True)
    measured = evaluate.by_length(base.requires_grad_(False), documents=documents)
    command = f"refine-server train nested --stage {stage}"
    summary = trainer.hand_over(base, find(model), command, **measured)
    typer.echo(json.dumps(summary))


@app.command()
def mid(
    out: Out,
    corpus: Annotated[list[Path], typer.Option(help="Text files; repeat for more.")],
    model: Model = "tiny",
    objective: Annotated[
        Literal["refine", "ntp"], typer.Option(help="REFINE, or its next-token loss alone.")
    ] = "refine",
    steps: Steps = None,
    seed: Seed = 0,
    resume: Resume = False,
    threads: Threads = 1,
    save_every: SaveEvery = 25,
) -> None:
    """Mid-training: the server's loop over a corpus, stepping the model's own weights.

    A killed run continues with --resume and ends in the same weights. The last line is a JSON
    object.
    """
    from refine_server.ttt.models.loading.loader import find, load
    from refine_server.ttt.training.midtraining import Recipe, Trainer, read_corpus

    recipe = Recipe(seed=seed) if steps is None else Recipe(seed=seed, steps=steps)
    recipe = replace(recipe, adapt=recipe.adapt.updated(objective=objective))
    with _refusals(threads):
        base = load(model)
        trainer = Trainer(recipe, base, read_corpus(base, corpus), out, resume=resume)
    trainer.run(_show, save_every=save_every)
    typer.echo(json.dumps(trainer.hand_over(base, find(model), "refine-server train mid")))


@app.command()
def compare(
    model: Model = "tiny",
    tokens: Annotated[int, typer.Option(min=32, help="Tokens of a document, about.")] = 220,
    facts: Annotated[int, typer.Option(min=2, help="Facts that it states.")] = 8,
    documents: Annotated[int, typer.Option(min=2, help="How many documents.")] = 25,
    seed: Annotated[int, typer.Option(help="Of the documents and questions.")] = 1,
    regime: Annotated[
        Literal["memory", "context"],
        typer.Option(help="The settings that tiny-nested is best adapted with for it."),
    ] = "memory",
    adapt: Annotated[
        str, typer.Option(help="JSON object: what differs from the regime's settings.")
    ] = "{}",
    ntp: Annotated[
        str, typer.Option(help="JSON object: what differs from --adapt for NTP, as its own rate.")
    ] = "{}",
    threads: Threads = 1,
) -> None:
    """None, NTP and REFINE beside each other, as nested post-training adapts.

    Exact match (0-100) from memory and in context, with 95 % intervals over documents; the last
    line is a JSON object.
    """
    from refine_server.ttt.models.loading.loader import load
    from refine_server.ttt.training.compare import compare
    from refine_server.ttt.training.nested import BEST

    with _refusals(threads):
        config = BEST[regime].updated(**json.loads(adapt))
        other = config.updated(**json.loads(ntp))
        base = load(model)
        result = compare(
            base, config, ntp=other, tokens=tokens, facts=facts, documents=documents, seed=seed
        )
    typer.echo(json.dumps(result))


@contextmanager
def _refusals(threads: int) -> Iterator[None]:
    """Say in one line why a run cannot begin."""
    import torch

    from refine_server.ttt.models import ModelError

    torch.set_num_threads(threads)
    try:
        yield
    except (FileNotFoundError, ModelError, ValueError) as error:
        typer.echo(f"cannot train: {error}", err=True)
        raise typer.Exit(2) from None


def _show(progress: "Progress") -> None:
    """One line on a terminal, rewritten; in a log a line every ten steps."""
    import sys

    figures = "  ".join(f"{name} {value:.3g}" for name, value in progress.figures.items())
    line = (
        f"step {progress.step}/{progress.steps}  loss {progress.loss:.3f}  {figures}  "
        f"read {progress.tokens / 1e6:.2f}M  {progress.seconds:.0f} s"
    )
    last = progress.step == progress.steps
    if sys.stderr.isatty():
        typer.echo(f"\r{line}\033[K", nl=last, err=True)
    elif last or progress.step % 10 == 0:
        typer.echo(line, err=True)
