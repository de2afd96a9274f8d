"""The command line. Commands import what they need, so that ``--help`` is quick."""

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from refine_server.benchmarks.cli import app as bench
from refine_server.server.cli.models import app as models
from refine_server.ttt.training.cli import app as train

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Answer questions about long documents with a model that adapts to each of them.",
)

app.add_typer(bench, name="bench")
app.add_typer(models, name="models")
app.add_typer(train, name="train")

keys = typer.Typer(no_args_is_help=True, help="API keys of a server.")
app.add_typer(keys, name="keys")

BAD_INPUT = 2
FAILED = 1
INTERRUPTED = 130


M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""``mallopt``'s names, from glibc's malloc.h."""


def _keep_freed_memory() -> None:
    """Have malloc reuse what a layer freed instead of giving it back to the system.

    Otherwise every layer's temporaries are new pages that the system has to clear: 80,000 page
    faults and a tenth of the time of reading 512 tokens with SmolLM2. What stays is at most a GiB.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # glibc's; others have none
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, 32 * 2**20)  # the largest that it takes
        mallopt(M_TRIM_THRESHOLD, 2**30)


def main() -> None:
    """Run the command line."""
    _keep_freed_memory()
    # Idle threads that spin make a busy machine many times slower; torch reads this as it loads.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    app()


@app.command(
    add_help_option=False,
    context_settings={
        "ignore_unknown_options": True,
        "allow_extra_args": True,
        "help_option_names": [],
    },
)
def serve(context: typer.Context) -> None:
    """Serve over HTTP. Each option is an environment variable, too: see serve --help."""
    from refine_server.server.settings import read_settings

    with _told_plainly():
        settings = read_settings(context.args)
        from refine_server.server.process import serve

        serve(settings)


@bench.command()
def overhead(
    clients: Annotated[int, typer.Option(min=1, help="Each sends one request at a time.")] = 50,
    rate: Annotated[float, typer.Option(min=1, help="Requests a second, of all clients.")] = 100.0,
    requests: Annotated[int, typer.Option(min=50, help="To each side in each round.")] = 500,
    repeats: Annotated[int, typer.Option(min=1, help="Rounds; the medians are reported.")] = 3,
    as_json: Annotated[bool, typer.Option("--json", help="End with one JSON object.")] = False,
) -> None:
    """This server without the model's work against a bare FastAPI echo of the same body."""
    from refine_server.benchmarks.console import print_result, told_plainly

    with told_plainly():
        from refine_server.benchmarks.serving.overhead_servers import run

        print_result(run(clients, rate, requests, repeats), as_json)


ApiKey = Annotated[
    str | None, typer.Option(envvar="REFINE_API_KEY", help="Of that server, if it wants one.")
]


@app.command()
def adapt(
    document: Annotated[str, typer.Option(help="Text file to adapt to; - reads stdin.")],
    url: Annotated[str, typer.Option(help="The server.")] = "http://127.0.0.1:8000",
    objective: Annotated[str | None, typer.Option(help="refine, ntp or none.")] = None,
    steps: Annotated[int | None, typer.Option(help="Adaptation steps.")] = None,
    seed: Annotated[int | None, typer.Option(help="Of the adaptation.")] = None,
    ttl_seconds: Annotated[float | None, typer.Option(help="Kept so long after its use.")] = None,
    api_key: ApiKey = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the whole resource as one JSON object.")
    ] = False,
) -> None:
    """Have a server adapt to a document, once, and print the id to ask it by."""
    with _told_plainly():
        from refine_server.server.cli.answer import adapt_there, read_document
        from refine_server.server.cli.progress import Follower
        from refine_server.ttt.interface.config import AdaptConfig

        text = read_document(document)
        options = _adapt_options(objective, steps, seed)
        follower = Follower(AdaptConfig().optimizer.steps if steps is None else steps, as_json)
        kept = _given(ttl_seconds=ttl_seconds)
        follower.follow(adapt_there(url, api_key, text, adapt=options, **kept))


@app.command()
def answer(
    query: Annotated[str, typer.Option(help="Question to answer from the document.")],
    document: Annotated[
        str | None, typer.Option(help="Text file to adapt to; - reads stdin.")
    ] = None,
    adaptation: Annotated[
        str | None, typer.Option(help="Id of an adaptation of the server, instead of a document.")
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="smollm2, tiny, a directory or a hub id.")
    ] = None,
    url: Annotated[
        str | None, typer.Option(help="Ask this server, instead of this process.")
    ] = None,
    objective: Annotated[str | None, typer.Option(help="refine, ntp or none.")] = None,
    steps: Annotated[int | None, typer.Option(help="Adaptation steps.")] = None,
    max_tokens: Annotated[int | None, typer.Option(help="Longest answer, in tokens.")] = None,
    seed: Annotated[int, typer.Option(help="Of the adaptation and of the answer.")] = 0,
    api_key: ApiKey = None,
    compare_base: Annotated[
        bool, typer.Option("--compare-base", help="Answer from the base weights as well.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the whole response as one JSON object.")
    ] = False,
) -> None:
    """Adapt to one document and answer one question about it."""
    with _told_plainly():
        from refine_server.server.cli.answer import (
            InputError,
            answer_here,
            answer_there,
            parse_body,
            read_document,
        )
        from refine_server.server.cli.progress import Follower
        from refine_server.server.settings import read_settings

        if document is None and adaptation is None:
            raise InputError("--document is needed, or --adaptation with --url")
        body: dict[str, Any] = {"query": query, "seed": seed, **_given(max_tokens=max_tokens)}
        if adaptation is not None:
            body["adaptation"] = adaptation
        else:
            body["adapt"] = _adapt_options(objective, steps, seed)
            body["compare_base"] = compare_base
        if document is not None:
            body["document"] = read_document(document)
        parsed = parse_body(body)
        follower = Follower(parsed.adapt.optimizer.steps, as_json)
        if url is not None:
            follower.follow(answer_there(url, api_key, {**body, **_given(model=model)}))
        elif adaptation is not None:
            raise InputError("--adaptation needs --url: the server that keeps it")
        else:
            settings = read_settings()
            if model is not None:
                settings = settings.model_copy(update={"model": model})
            follower.follow(answer_here(parsed, settings))


@app.command()
def demo(
    example: Annotated[Path, typer.Option(help="Example file.")] = Path("examples/ships_log.json"),
    model: Annotated[str, typer.Option(help="Model to serve.")] = "smollm2",
) -> None:
    """Start a server, ask it about an example document and check its answer."""
    with _told_plainly():
        from refine_server.server.cli.demo import run_demo

        right = run_demo(example, model)
    raise typer.Exit(0 if right else FAILED)


@keys.callback()
def _keys() -> None:
    """API keys of a server."""


@keys.command("new")
def new_key(name: Annotated[str, typer.Argument(help="Whose key it is.")]) -> None:
    """Make a key: on stdout its entry for --api-keys-file, on stderr, this once, the key."""
    with _told_plainly():
        from refine_server.server.access import keys

        key, entry = keys.new_key(name)
        typer.echo(f"The key of {name}, which is kept nowhere else: {key}", err=True)
        typer.echo(entry.toml())


@app.command()
def openapi() -> None:
    """Print the HTTP contract as an OpenAPI document, for generators of clients."""
    import json

    from refine_server.server.app import create_app
    from refine_server.server.settings import Settings

    typer.echo(json.dumps(create_app(Settings()).openapi(), indent=1))


def _adapt_options(objective: str | None, steps: int | None, seed: int | None) -> dict[str, Any]:
    options = _given(objective=objective, seed=seed)
    return options if steps is None else {**options, "optimizer": {"steps": steps}}


def _given(**options: Any) -> dict[str, Any]:
    """The options that were given; the others keep the defaults of whoever answers."""
    return {name: value for name, value in options.items() if value is not None}


@contextmanager
def _told_plainly() -> Iterator[None]:
    """One line on stderr instead of a traceback, for whatever a user can put right."""
    try:
        yield
    except KeyboardInterrupt:
        raise typer.Exit(INTERRUPTED) from None
    except Exception as error:
        status = _exit_status(error)
        if status is None:
            raise
        typer.echo(f"refine-server: {error}", err=True)
        raise typer.Exit(status) from None


def _exit_status(error: Exception) -> int | None:
    from refine_server.clients import ClientError
    from refine_server.server.cli.answer import InputError
    from refine_server.server.process import StartError
    from refine_server.server.settings import SettingsError
    from refine_server.ttt.interface.errors import RequestError

    if isinstance(error, InputError | SettingsError | RequestError):
        return BAD_INPUT
    if isinstance(error, ClientError | StartError):
        return FAILED
    return None


if __name__ == "__main__":
    main()
