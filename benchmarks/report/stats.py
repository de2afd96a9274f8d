"""Means with bootstrap intervals, and paired comparisons."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 5_000
PERCENTILES = (50, 90, 95, 99)


@dataclass(frozen=True)
class Interval:
    """A mean with its 95 % percentile-bootstrap interval (Efron 1979), and the sample size.

    A resample of one value, or of equal ones, is always the same, which says nothing of how
    uncertain their mean is. There is no interval then, and ``why_none`` says why.
    """

    mean: float
    low: float | None
    high: float | None
    n: int
    why_none: str | None = None

    def __str__(self) -> str:
        return self.text()

    def text(self, form: str = ".1f") -> str:
        """Return mean and interval, or why there is none, with numbers in a format."""
        if self.low is None or self.high is None:
            return f"{self.mean:{form}} ({self.why_none})"
        return f"{self.mean:{form}} [{self.low:{form}}, {self.high:{form}}]"

    def bounds(self) -> list[float | None]:
        """Return both ends of the interval, rounded for JSON."""
        return [None if end is None else round(end, 2) for end in (self.low, self.high)]


def interval(values: Sequence[float]) -> Interval:
    """Return the mean over questions with its interval."""
    return stratified({"": values})


def stratified(values: Mapping[str, Sequence[float]]) -> Interval:
    """Return the mean of group means with its interval; groups are resampled within.

    There is no interval if a group has one value, whose spread nobody knows, or if the values of
    every group are equal.
    """
    n = sum(len(v) for v in values.values())
    mean = float(np.mean([np.mean(v) for v in values.values()]))
    if min(len(v) for v in values.values()) == 1:
        why = "n = 1" if len(values) == 1 else "no interval: n = 1 in a task"
        return Interval(mean, None, None, n, why)
    if all(min(v) == max(v) for v in values.values()):
        why = "all equal" if len(values) == 1 else "no interval: all equal in each task"
        return Interval(mean, None, None, n, why)
    generator = np.random.default_rng(0)
    means = np.mean([_resampled(np.asarray(v), generator) for v in values.values()], axis=0)
    low, high = np.percentile(means, [2.5, 97.5])
    return Interval(mean, float(low), float(high), n)


@dataclass(frozen=True)
class Paired:
    """Paired comparison on the same questions; the difference is ours minus theirs."""

    wins: int
    ties: int
    losses: int
    difference: Interval


def paired(ours: Sequence[float], theirs: Sequence[float]) -> Paired:
    """Compare two sides question by question."""
    differences = [a - b for a, b in zip(ours, theirs, strict=True)]
    return Paired(
        wins=sum(d > 0 for d in differences),
        ties=sum(d == 0 for d in differences),
        losses=sum(d < 0 for d in differences),
        difference=interval(differences),
    )


def percentiles(values: Sequence[float]) -> dict[str, float]:
    """Return the mean and percentiles of durations."""
    values_at = np.percentile(np.asarray(values), PERCENTILES)
    return {
        "mean": float(np.mean(values)),
        **{f"p{p}": float(v) for p, v in zip(PERCENTILES, values_at, strict=True)},
    }


def _resampled(values: NDArray[np.float64], generator: np.random.Generator) -> NDArray[np.float64]:
    """Return the means of resamples. [RESAMPLES]"""
    chosen = generator.integers(len(values), size=(RESAMPLES, len(values)))
    means: NDArray[np.float64] = values[chosen].mean(axis=1)
    return means
