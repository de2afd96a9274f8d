"""``refine-server answer`` and ``refine-server adapt``."""

import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from refine_server.server.cli.commands.trace import write_trace
from refine_server.server.cli.exit import InputError

Document = typer.Option(help="Text file (UTF-8) to adapt to; - reads standard input.")
Adapt = Annotated[
    str | None,
    typer.Option(
        "--adapt",
        metavar="PRESET|JSON",
        help="How to adapt to the document: a preset (fast, balanced, thorough, paper), or the "
        "fields of the request's `adapt` object as JSON; '{}' is REFINE with its defaults. "
        "Default: no adaptation for one answer, the defaults for an adaptation that is kept.",
    ),
]
EvidenceBy = Annotated[
    str | None,
    typer.Option(
        "--evidence",
        help="How evidence is found in the document: bm25 (words of the question), attention or "
        "utility (by the model). Default: bm25, where evidence is needed.",
    ),
]
EvidenceCount = Annotated[
    int | None, typer.Option(help="Maximum number of chunks that are evidence. Default: 4.")
]
EvidenceTokens = Annotated[
    int | None, typer.Option(help="Maximum length of such a chunk in tokens. Default: 128.")
]
EvidenceWords = Annotated[
    str | None, typer.Option(help="Words to search by, instead of the question (bm25).")
]
EvidenceSpan = Annotated[
    list[str] | None,
    typer.Option(
        help="Part of the document that is evidence, as START:END in characters, e.g. 0:120. Can "
        "be given several times, instead of --evidence."
    ),
]
OnOverflow = Annotated[
    str | None,
    typer.Option(
        help="What is done with a document that is too long to be read as a whole: passages (the "
        "parts that fit the question best are read; not for an adaptation that is kept), "
        "truncate_middle (its middle is cut out) or error. Default: passages, and truncate_middle "
        "for an adaptation that is kept."
    ),
]
ApiKey = Annotated[
    str | None,
    typer.Option(envvar="REFINE_API_KEY", help="API key for the server, if it needs one."),
]


AsEstimate = Annotated[
    bool,
    typer.Option(
        "--estimate",
        help="Print the seconds that it would take, by measurement, and whether the server would "
        "admit it now, instead of doing it.",
    ),
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
    evidence: EvidenceBy = None,
    evidence_count: EvidenceCount = None,
    evidence_tokens: EvidenceTokens = None,
    evidence_words: EvidenceWords = None,
    evidence_span: EvidenceSpan = None,
    on_overflow: OnOverflow = None,
    adapt: Adapt = None,
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
    as_estimate: AsEstimate = False,
    trace: Annotated[
        Path | None,
        typer.Option(
            help="Write what the model saw and did, step by step, to this file (JSON). "
            "`refine-server trace plot` draws it."
        ),
    ] = None,
) -> None:
    """Answer a question about a document, adapted to it if --adapt says so.

    The answer goes to stdout, progress to stderr. Without --url the model is loaded into this
    process; the REFINE_ variables of `refine-server serve` apply to it.
    """
    from refine_server.server.api.answers_schema import AnswerBody
    from refine_server.server.cli import event_sources
    from refine_server.server.cli.progress import Follower, print_estimate
    from refine_server.server.settings import read_settings

    if document is None and adaptation is None:
        raise InputError("name a document with --document, or an adaptation with --adaptation")
    if adaptation is not None and url is None:
        raise InputError("--adaptation needs --url, the server that keeps the adaptation")
    found = _evidence_options(
        evidence, evidence_count, evidence_tokens, evidence_words, evidence_span
    )
    own = _given(document=document, on_overflow=on_overflow, adapt=adapt, trace=trace)
    if adaptation is not None and own:
        options = ", ".join(f"--{name.replace('_', '-')}" for name in own)
        raise InputError(f"{options} cannot be combined with --adaptation")
    body: dict[str, Any] = {
        "query": query,
        "seed": seed,
        **_given(adaptation=adaptation, context=context, evidence=found or None),
        **_given(max_tokens=max_tokens, compare_base=compare_base or None),
        **_given(on_overflow=on_overflow),
    }
    if document is not None:
        body["document"] = read_document(document)
    if adapt is not None:
        body["adapt"] = {"seed": seed, **_adapt_fields(adapt)}
    if trace is not None:
        body["adapt"] = {**body.get("adapt", {"objective": "none"}), "trace": True}
    parsed = event_sources.parse_body(body, AnswerBody)
    if url is not None:
        body |= _given(model=model)
        if as_estimate:
            print_estimate(event_sources.estimate_by_server(url, api_key, body), as_json)
            return
        events = event_sources.answer_by_server(url, api_key, body)
    else:
        settings = read_settings().model_copy(update=_given(model=model))
        if as_estimate:
            print_estimate(event_sources.estimate_in_process(parsed, settings), as_json)
            return
        events = event_sources.answer_in_process(parsed, settings)
    response = Follower(as_json).follow(events)
    if trace is not None:
        write_trace(trace, body, response)


def adapt(
    document: Annotated[str, Document],
    url: Annotated[str, typer.Option(help="URL of the server.")] = "http://127.0.0.1:8000",
    query: Annotated[
        list[str] | None,
        typer.Option(
            help="Question that is expected, for an adaptation on evidence (--adapt fast, "
            "balanced). Can be given several times."
        ),
    ] = None,
    evidence: EvidenceBy = None,
    evidence_count: EvidenceCount = None,
    evidence_tokens: EvidenceTokens = None,
    evidence_words: EvidenceWords = None,
    evidence_span: EvidenceSpan = None,
    on_overflow: OnOverflow = None,
    adapt: Adapt = None,
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
    as_estimate: AsEstimate = False,
) -> None:
    """Adapt to a document on a server, and print the id of the adaptation.

    The server keeps the adaptation. Ask it questions with `refine-server answer --adaptation ID`.
    """
    from refine_server.server.api.adaptations_schema import AdaptationBody
    from refine_server.server.cli import event_sources
    from refine_server.server.cli.progress import Follower, print_estimate

    text = read_document(document)
    found = _evidence_options(
        evidence, evidence_count, evidence_tokens, evidence_words, evidence_span
    )
    options: dict[str, Any] = {
        "adapt": {**_given(seed=seed), **_adapt_fields(adapt or "{}")},
        **_given(queries=query or None, evidence=found or None, ttl_seconds=ttl_seconds),
        **_given(on_overflow=on_overflow),
    }
    body = {"document": text, **options}
    event_sources.parse_body(body, AdaptationBody)
    if as_estimate:
        print_estimate(event_sources.estimate_by_server(url, api_key, body), as_json)
        return
    Follower(as_json).follow(event_sources.adapt_by_server(url, api_key, text, **options))


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


def _adapt_fields(text: str) -> dict[str, Any]:
    """The ``adapt`` object that the option --adapt says.

    Raises:
        InputError: it is neither a preset nor a JSON object.
    """
    from refine_server.ttt.interface.presets import parse_adapt

    try:
        return parse_adapt(text)
    except ValueError as error:
        raise InputError(f"--adapt {error}") from None


def _evidence_options(
    by: str | None,
    count: int | None,
    tokens: int | None,
    words: str | None,
    spans: Sequence[str] | None,
) -> dict[str, Any]:
    """The ``evidence`` object of the options that were given; empty if there are none.

    Raises:
        InputError: a span is not of the form START:END, or stands beside another way.
    """
    given = _given(count=count, tokens=tokens, words=words)
    if not spans:
        return {"by": by or "bm25", **given} if by or given else {}
    if by or given:
        raise InputError("--evidence-span cannot be combined with other --evidence options")
    places = [re.fullmatch(r"(\d+):(\d+)", span) for span in spans]
    if None in places:
        wrong = spans[places.index(None)]
        raise InputError(f"--evidence-span: {wrong!r} is not of the form START:END, e.g. 0:120")
    named = [{"start": int(place[1]), "end": int(place[2])} for place in places if place]
    return {"by": "spans", "spans": named}


def _given(**options: Any) -> dict[str, Any]:
    """The options that were given; the others keep the defaults of the server or the settings."""
    return {name: value for name, value in options.items() if value is not None}
