"""Report of a load bench: throughput, goodput, latency by phase, errors and cost."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

from refine_server.benchmarks.common.traces import stored_history
from refine_server.benchmarks.report import plots, stats
from refine_server.benchmarks.report.manifest import Manifest
from refine_server.benchmarks.report.render import Plot, Report, Section, facts_of
from refine_server.benchmarks.serving.drive import Level, Observed

LOADS = {"poisson": "requests a second", "closed": "clients"}


def summary(level: Level, bound: float, dollars_per_hour: float | None) -> dict[str, Any]:
    """Return the figures of one level of load.

    Args:
        level: the observed requests.
        bound: seconds within which an answer counts as good.
        dollars_per_hour: price of the server; None leaves costs out.
    """
    answered = [o for o in level.requests if o.answer is not None]
    failed = [o for o in level.requests if o.error]
    good = [o for o in answered if o.total <= bound]
    tokens = sum(o.answer.usage.completion_tokens for o in answered if o.answer)
    busy = sum(_model_seconds(o) for o in answered)
    price = None
    if dollars_per_hour is not None and answered:
        price = dollars_per_hour / 3600 * level.seconds / len(answered)
    return {
        "arrivals": level.arrivals,
        "load": level.load,
        "seconds": level.seconds,
        "requests": len(level.requests),
        "answers": len(answered),
        "repeated": sum(o.repeated for o in level.requests),
        "adapted": sum(o.answer.answered_by == "adapted" for o in answered if o.answer),
        "errors": dict(Counter(o.error for o in failed)),
        "reasons": {o.error: o.reason for o in reversed(failed)},
        "first_error": f"{failed[0].error}: {failed[0].reason}" if failed else None,
        "answers_per_second": len(answered) / level.seconds,
        "tokens_per_second": tokens / level.seconds,
        "goodput_per_second": len(good) / level.seconds,
        "good_share": len(good) / len(level.requests),
        "model_seconds_per_answer": busy / len(answered) if answered else None,
        "server_seconds_per_answer": level.seconds / len(answered) if answered else None,
        "dollars_per_answer": price,
        "phases": _phases(answered),
    }


def load_report(
    manifest: Manifest, levels: Sequence[Level], bound: float, dollars_per_hour: float | None
) -> Report:
    """Make the report of all levels, in the order in which they ran."""
    found = [summary(level, bound, dollars_per_hour) for level in levels]
    unit = LOADS[levels[0].arrivals]
    sections = [
        _throughput(found, unit, bound),
        _latency(found, levels, unit),
        _errors(found, unit),
        _cost(found, unit),
    ]
    data = {"manifest": asdict(manifest), "bound_seconds": bound, "levels": found}
    return Report(
        f"Load: {manifest.model['id']}", facts_of(manifest), [s for s in sections if s.rows], data
    )


def rows_of(levels: Sequence[Level]) -> Iterator[dict[str, Any]]:
    """Yield what each request's client saw, with the answer, for a file of rows."""
    for level in levels:
        for seen in level.requests:
            answer = seen.answer
            yield {
                "load": level.load,
                "due": round(seen.due, 3),
                "repeated": seen.repeated,
                "first": seen.first and round(seen.first, 3),
                "total": round(seen.total, 3),
                "error": seen.error,
                "reason": seen.reason,
                "answer": answer and answer.answer,
                "answered_by": answer and answer.answered_by,
                "usage": answer and answer.usage.model_dump(),
                "timings": answer and answer.timings.model_dump(),
                **stored_history(None if answer is None else answer.adaptation_report),
            }


def _throughput(found: Sequence[dict[str, Any]], unit: str, bound: float) -> Section:
    rows = [
        [
            f"{level['load']:g}",
            f"{level['answers']} of {level['requests']}",
            f"{level['seconds']:.1f}",
            f"{level['answers_per_second']:.3f}",
            f"{level['tokens_per_second']:.1f}",
            f"{level['goodput_per_second']:.3f}",
            f"{100 * level['good_share']:.0f} %",
        ]
        for level in found
    ]
    header = [unit, "answered", "seconds", "answers/s", "tokens/s", "good answers/s", "good"]
    text = (
        f"A good answer came within {bound:g} s of when its request was due. What was refused or "
        "failed counts as not good."
    )
    return Section("Throughput and goodput", text, header, rows)


def _latency(found: Sequence[dict[str, Any]], levels: Sequence[Level], unit: str) -> Section:
    rows = [
        [phase, f"{level['load']:g}", *(f"{value:.3f}" for value in of.values())]
        for phase in next((level["phases"] for level in found if level["phases"]), {})
        for level in found
        if (of := level["phases"].get(phase))
    ]
    series = {
        f"{level.load:g} {unit}": (values, len(level.requests))
        for level in levels
        if (values := [o.total for o in level.requests if o.answer])
    }
    header = ["phase", unit, "mean", *(f"p{p}" for p in stats.PERCENTILES)]
    text = (
        "Seconds, of the requests that were answered. Total, first token and the gaps between "
        "tokens are the client's, from when a request was due; the others are the server's."
    )
    draw = partial(plots.distribution, series=series, x_label="seconds for an answer")
    caption = "Share of all requests that were answered within so many seconds."
    plot = Plot("latency", "Time to the whole answer, by load", caption, draw)
    return Section("Latency", text, header, rows, [plot] if series else [])


def _errors(found: Sequence[dict[str, Any]], unit: str) -> Section:
    rows = [
        [f"{level['load']:g}", error, str(count), level["reasons"][error]]
        for level in found
        for error, count in sorted(level["errors"].items())
    ]
    return Section("Errors", "", [unit, "error", "requests", "the first one's message"], rows)


def _cost(found: Sequence[dict[str, Any]], unit: str) -> Section:
    rows = [
        [
            f"{level['load']:g}",
            f"{level['model_seconds_per_answer']:.2f}",
            f"{level['server_seconds_per_answer']:.2f}",
            "-" if (price := level["dollars_per_answer"]) is None else f"{price:.6f}",
        ]
        for level in found
        if level["answers"]
    ]
    text = (
        "The model's seconds are prefill, adaptation and decoding, turns of others included; the "
        "server's are the level's length over its answers."
    )
    header = [unit, "model seconds", "server seconds", "US dollars"]
    return Section("Cost of an answer", text, header, rows)


def _phases(answered: Sequence[Observed]) -> dict[str, dict[str, float]]:
    timings = [o.answer.timings for o in answered if o.answer]
    values = {
        "total": [o.total for o in answered],
        "first token": [o.first for o in answered if o.first is not None],
        "between tokens": [gap for o in answered for gap in o.gaps],
        "queue": [t.queue_seconds for t in timings],
        "prefill": [t.prefill_seconds for t in timings],
        "adaptation": [t.adapt_seconds for t in timings],
        "decoding": [t.decode_seconds for t in timings],
    }
    return {name: stats.percentiles(of) for name, of in values.items() if of}


def _model_seconds(observed: Observed) -> float:
    if observed.answer is None:
        return 0.0
    timings = observed.answer.timings
    return timings.prefill_seconds + timings.adapt_seconds + timings.decode_seconds
