"""``refine-server train``: train the bundled models, and models that are meant to be adapted."""

import json
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

if TYPE_CHECKING:  # --help must not import torch
    from refine_server.ttt.interface.config import AdaptConfig
    from refine_server.ttt.training.run import Progress

app = typer.Typer(
    no_args_is_help=True,
    help="Train the bundled models, and models that are meant to be adapted.",
)

Out = Annotated[Path, typer.Option(help="Directory to write the model and checkpoints to.")]
Steps = Annotated[
    int | None, typer.Option(min=1, help="Number of optimizer steps. Default: the recipe's.")
]
Seed = Annotated[int, typer.Option(help="Random seed for data and training.")]
Resume = Annotated[bool, typer.Option("--resume", help="Continue from the checkpoint in --out.")]
Threads = Annotated[int, typer.Option(min=1, help="CPU threads for one operation.")]
SaveEvery = Annotated[int, typer.Option(min=1, help="Number of steps between two checkpoints.")]
Documents = Annotated[
    int,
    typer.Option(min=1, help="Number of test documents of each length, with 8 questions each."),
]
Model = Annotated[
    str, typer.Option(help="Model to start from: a name, a directory or a hub id (owner/name).")
]


@app.callback()
def _train() -> None:
    """Train the bundled models, and models that are meant to be adapted."""
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
    """Train the model tiny, a DeltaNet that answers questions from a document.

    A run that was killed continues with --resume and gives the same weights. The last line of the
    output is a JSON object with the exact-match score (0 to 1) for each document length.
    """
    from refine_server.ttt.training.tiny import Recipe, Trainer

    recipe = Recipe(seed=seed) if steps is None else Recipe(seed=seed, steps=steps)
    _use_threads(threads)
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
        typer.Option(
            help="Stage of tiny-nested: first, then many_facts, which continues from the result "
            "of the first (its --out, as --model)."
        ),
    ] = "first",
    steps: Steps = None,
    seed: Annotated[
        int | None, typer.Option(help="Random seed for data and training. Default: the stage's.")
    ] = None,
    resume: Resume = False,
    threads: Threads = 1,
    save_every: SaveEvery = 25,
    documents: Documents = 25,
) -> None:
    """Train a model to be adapted (nested post-training).

    The inner loop adapts the fast weights on documents; the outer loop lowers the loss of answers
    about them. The model must have the tokenizer of tiny. A run that was killed continues with
    --resume and gives the same weights. The last line of the output is a JSON object with the
    unadapted model's exact-match score (0 to 1) for each document length.
    """
    from refine_server.ttt.models.loading.loader import find, load
    from refine_server.ttt.training import evaluate
    from refine_server.ttt.training.nested import RECIPES, Trainer

    own = RECIPES[stage]
    recipe = replace(own, steps=steps or own.steps, seed=own.seed if seed is None else seed)
    _use_threads(threads)
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
    corpus: Annotated[list[Path], typer.Option(help="Text file (UTF-8) to train on; repeatable.")],
    model: Model = "tiny",
    objective: Annotated[
        Literal["refine", "ntp"],
        typer.Option(help="Training objective: refine, or ntp (next-token loss only)."),
    ] = "refine",
    steps: Steps = None,
    seed: Seed = 0,
    resume: Resume = False,
    threads: Threads = 1,
    save_every: SaveEvery = 25,
) -> None:
    """Train a model's own weights on a corpus with REFINE (mid-training).

    A run that was killed continues with --resume and gives the same weights. The last line of the
    output is a JSON object that describes the run.
    """
    from refine_server.ttt.models.loading.loader import find, load
    from refine_server.ttt.training.midtraining import Recipe, Trainer, read_corpus

    recipe = Recipe(seed=seed) if steps is None else Recipe(seed=seed, steps=steps)
    recipe = replace(recipe, adapt=recipe.adapt.updated(objective=objective))
    _use_threads(threads)
    base = load(model)
    trainer = Trainer(recipe, base, read_corpus(base, corpus), out, resume=resume)
    trainer.run(_show, save_every=save_every)
    typer.echo(json.dumps(trainer.hand_over(base, find(model), "refine-server train mid")))


@app.command()
def compare(
    model: Annotated[
        str, typer.Option(help="Model to evaluate: a name, a directory or a hub id (owner/name).")
    ] = "tiny",
    tokens: Annotated[
        int, typer.Option(min=32, help="Approximate document length in tokens.")
    ] = 220,
    facts: Annotated[int, typer.Option(min=2, help="Number of facts in a document.")] = 8,
    documents: Annotated[int, typer.Option(min=2, help="Number of documents.")] = 25,
    seed: Annotated[int, typer.Option(help="Random seed for documents and questions.")] = 1,
    regime: Annotated[
        Literal["memory", "context"],
        typer.Option(
            help="Use the best known settings of tiny-nested for answering from memory, or with "
            "the document in context."
        ),
    ] = "memory",
    adapt: Annotated[
        str,
        typer.Option(help="Adaptation settings that differ from those of --regime (JSON object)."),
    ] = "{}",
    ntp: Annotated[
        str,
        typer.Option(
            help="Adaptation settings of the next-token objective that differ from --adapt (JSON "
            "object), e.g. its own learning rate."
        ),
    ] = "{}",
    threads: Threads = 1,
) -> None:
    """Compare no adaptation, next-token adaptation and REFINE.

    Exact match (0 to 100) from memory and with the document in context, with 95 % confidence
    intervals over documents. The last line of the output is a JSON object.
    """
    from refine_server.ttt.models.loading.loader import load
    from refine_server.ttt.training.compare import compare
    from refine_server.ttt.training.nested import BEST

    _use_threads(threads)
    config = _changed(BEST[regime], adapt, "--adapt")
    own = _changed(config, ntp, "--ntp")
    result = compare(
        load(model), config, ntp=own, tokens=tokens, facts=facts, documents=documents, seed=seed
    )
    typer.echo(json.dumps(result))


def _changed(config: "AdaptConfig", changes: str, option: str) -> "AdaptConfig":
    """Apply the changes that an option gives as a JSON object to the settings."""
    from pydantic import ValidationError

    from refine_server.ttt.interface.plain_words import problems

    try:
        fields: dict[str, Any] = dict(json.loads(changes))
        return config.updated(**fields)
    except ValidationError as error:
        raise typer.BadParameter(f"{option}: {problems(error)}") from None
    except (ValueError, TypeError):
        raise typer.BadParameter(f"{option} must be a JSON object") from None


def _use_threads(threads: int) -> None:
    import torch

    torch.set_num_threads(threads)


def _show(progress: "Progress") -> None:
    """Show progress: one line that is rewritten on a terminal, otherwise a line every ten steps."""
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
