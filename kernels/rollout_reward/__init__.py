"""Rewards of rollouts that continue a document, and their group-relative advantages."""

from typing import Literal

Reward = Literal["exact", "cosine", "hybrid"]

EPS = 1e-6
"""Added to a group's standard deviation; one below it counts as no variance."""
