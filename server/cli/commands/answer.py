"""``refine-server answer`` and ``refine-server adapt``."""

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from refine_server.server.cli.exit import InputError

Document = typer.Option(help="Text file (UTF-8) to adapt to; - reads standard input.")
Objective = Annotated[
    str | None,
    typer.Option(
        help="Training objective of the adaptation: refine (REFINE and next-token loss), ntp "
        "(next-token loss only) or none (no adaptation). Default: none for one answer, refine for "
        "an adaptation that is kept."
    ),
]
Steps = Annotated[int | None, typer.Option(help="Maximum number of adaptation steps. Default: 8.")]
ApiKey = Annotated[
    str | None,
    typer.Option(envvar="REFINE_API_KEY", help="API key for the server, if it needs one."),
]


def answer(
    query: Annotated[str, typer.Option(help="Question to answer from the document.")],
    document: Annotated[str | None, Document] = None,
    adaptation: Annotated[
        str | None,
        typer.Option(help="Id of an adaptation that the server keeps, instead of --document."),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            help="Model to load: smollm2, tiny, tiny-nested, a directory or a hub id (owner/name). "
            "With --url, the model that the server must be serving."
        ),
    ] = None,
    url: Annotated[
        str | None,
        typer.Option(help="URL of a server that answers. Default: answer in this process."),
    ] = None,
    context: Annotated[
        str | None,
        typer.Option(
            help="What the model reads before the question: document, passages (the parts of the "
            "document with most words of the question), document+passages, or best (of the answers "
            "in these three ways, the one that the passages make likeliest)."
        ),
    ] = None,
    objective: Objective = None,
    steps: Steps = None,
    max_tokens: Annotated[
        int | None, typer.Option(help="Maximum length of the answer in tokens. Default: 64.")
    ] = None,
    seed: Annotated[
        int, typer.Option(help="Random seed for the adaptation and for sampling the answer.")
    ] = 0,
    api_key: ApiKey = None,
    compare_base: Annotated[
        bool, typer.Option("--compare-base", help="Print the unadapted model's answer as well.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the whole response as one JSON object.")
    ] = False,
) -> None:
    """Answer a question about a document, adapted to it if --objective or --steps says so.

    The answer goes to stdout, progress to stderr. Without --url the model is loaded into this
    process; the REFINE_ variables of `refine-server serve` apply to it.
    """
    from refine_server.server.cli import event_sources
    from refine_server.server.cli.progress import Follower
    from refine_server.server.settings import read_settings

    if document is None and adaptation is None:
        raise InputError("name a document with --document, or an adaptation with --adaptation")
    if adaptation is not None and url is None:
        raise InputError("--adaptation needs --url, the server that keeps the adaptation")
    if adaptation is not None:
        given = _given(
            document=document,
            context=context,
            objective=objective,
            steps=steps,
            compare_base=compare_base or None,
        )
        if given:
            options = ", ".join(f"--{name.replace('_', '-')}" for name in given)
            raise InputError(f"{options} cannot be combined with --adaptation")
    body: dict[str, Any] = {"query": query, "seed": seed, **_given(max_tokens=max_tokens)}
    if document is not None:
        body["document"] = read_document(document)
    if adaptation is not None:
        body["adaptation"] = adaptation
    else:
        body |= _given(context=context)
        if objective is not None or steps is not None:
            body["adapt"] = _adapt_options(objective, steps, seed)
        body["compare_base"] = compare_base
    parsed = event_sources.parse_body(body)
    if url is not None:
        events = event_sources.answer_by_server(url, api_key, body | _given(model=model))
    else:
        settings = read_settings().model_copy(update=_given(model=model))
        events = event_sources.answer_in_process(parsed, settings)
    adapt = parsed.adapt
    steps = 0 if adapt.objective == "none" else adapt.optimizer.steps
    Follower(steps, as_json).follow(events)


def adapt(
    document: Annotated[str, Document],
    url: Annotated[str, typer.Option(help="URL of the server.")] = "http://127.0.0.1:8000",
    objective: Objective = None,
    steps: Steps = None,
    seed: Annotated[int | None, typer.Option(help="Random seed for the adaptation.")] = None,
    ttl_seconds: Annotated[
        float | None,
        typer.Option(
            help="Keep the adaptation this many seconds after its last use. "
            "Default: the server's --adaptation-ttl-seconds."
        ),
    ] = None,
    api_key: ApiKey = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the whole adaptation as one JSON object.")
    ] = False,
) -> None:
    """Adapt to a document on a server, and print the id of the adaptation.

    The server keeps the adaptation. Ask it questions with `refine-server answer --adaptation ID`.
    """
    from refine_server.server.cli.event_sources import adapt_by_server
    from refine_server.server.cli.progress import Follower
    from refine_server.ttt.interface.config import AdaptConfig

    text = read_document(document)
    fields = _adapt_options(objective, steps, seed)
    follower = Follower(AdaptConfig().optimizer.steps if steps is None else steps, as_json)
    kept = _given(ttl_seconds=ttl_seconds)
    follower.follow(adapt_by_server(url, api_key, text, adapt=fields, **kept))


def read_document(path: str) -> str:
    """Read the text of a file, or of standard input when the path is ``-``.

    Raises:
        InputError: the file cannot be read, or is not UTF-8.
    """
    try:
        data = sys.stdin.buffer.read() if path == "-" else Path(path).read_bytes()
        return data.decode("utf-8-sig")
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text: {error.reason}") from None


def _adapt_options(objective: str | None, steps: int | None, seed: int | None) -> dict[str, Any]:
    """The ``adapt`` object of the options that were given."""
    optimizer = None if steps is None else {"steps": steps}
    return _given(objective=objective, optimizer=optimizer, seed=seed)


def _given(**options: Any) -> dict[str, Any]:
    """The options that were given; the others keep the defaults of the server or the settings."""
    return {name: value for name, value in options.items() if value is not None}
