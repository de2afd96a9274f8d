"""Means with bootstrap intervals, and paired comparisons."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 5_000
PERCENTILES = (50, 90, 95, 99)


@dataclass(frozen=True)
class Interval:
    """A mean with its 95 % percentile-bootstrap interval (Efron 1979), and the sample size."""

    mean: float
    low: float
    high: float
    n: int

    def __str__(self) -> str:
        return f"{self.mean:.1f} [{self.low:.1f}, {self.high:.1f}]"


def interval(values: Sequence[float]) -> Interval:
    """Return the mean over questions with its interval."""
    return stratified({"": values})


def stratified(values: Mapping[str, Sequence[float]]) -> Interval:
    """Return the mean of group means with its interval; groups are resampled within."""
    generator = np.random.default_rng(0)
    means = np.mean([_resampled(np.asarray(v), generator) for v in values.values()], axis=0)
    low, high = np.percentile(means, [2.5, 97.5])
    mean = float(np.mean([np.mean(v) for v in values.values()]))
    return Interval(mean, float(low), float(high), sum(len(v) for v in values.values()))


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
