"""Autoscaling by the seconds of work that wait."""

import math
from collections.abc import Mapping
from typing import Any

QUEUED_SECONDS = 10.0
"""Seconds of work that may wait at one replica, on average, before another one is started."""


def replicas_for(queued_seconds: float, busy: int, now: int) -> int:
    """Return how many replicas there should be.

    Enough that no more than ``QUEUED_SECONDS`` wait for each; one less while nothing waits and one
    has nothing to do.

    Args:
        queued_seconds: estimated seconds of work that wait at all replicas.
        busy: replicas that have work, or may have.
        now: how many replicas there are.
    """
    if queued_seconds == 0.0 and busy < now:
        return now - 1
    return max(now, math.ceil(queued_seconds / QUEUED_SECONDS))


def scale_on_queued_seconds(context: Any) -> tuple[int, dict[str, Any]]:
    """Decide how many replicas there should be: the policy function of Ray Serve's autoscaler.

    Args:
        context: Serve's ``AutoscalingContext``, with what ``Replica.record_autoscaling_stats``
            reported.

    Returns:
        The number of replicas, which Serve keeps within the configured bounds, and no state.
    """
    reported: Mapping[str, Mapping[Any, float]] = context.aggregated_metrics
    queued = sum(reported.get("queued_seconds", {}).values())
    shares = reported.get("is_busy", {}).values()
    # One that has not reported yet has just been started, for work that waits.
    busy = context.target_num_replicas - sum(share == 0.0 for share in shares)
    return replicas_for(queued, busy, context.target_num_replicas), {}
