"""How a run ends in which requests failed: with status 1 and the first reason."""

from collections.abc import Mapping
from typing import Any


class RunFailedError(RuntimeError):
    """A run that did not measure what it was asked to measure; the message says why."""


def require_answers(failed: int, requests: int, first: str | None) -> None:
    """End the run, after its report, if requests of it failed.

    Args:
        failed: number of the requests that brought no answer.
        requests: number of all requests.
        first: which request failed first, and why.

    Raises:
        RunFailedError: some failed.
    """
    if failed:
        raise RunFailedError(f"{failed} of {requests} requests failed; the first: {first}")


def require_zero(result: Mapping[str, Any], names: tuple[str, ...], first: str | None) -> None:
    """End the run, after its report, if one of its counts of what must not happen is not zero.

    Args:
        result: the figures of the run.
        names: the counts.
        first: what went wrong first.

    Raises:
        RunFailedError: something happened.
    """
    bad = [f"{name} {result[name]}" for name in names if result[name]]
    if bad:
        raise RunFailedError(f"{', '.join(bad)}" + (f"; the first: {first}" if first else ""))
