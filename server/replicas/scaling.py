"""Autoscaling by the seconds of work that wait."""

import math
from collections.abc import Mapping
from typing import Any

QUEUED_SECONDS = 10.0
"""Seconds of work that may wait at one replica, on average, before another one is started."""


def replicas_for(queued_seconds: float, now: int) -> int:
    """Return how many replicas there should be.

    A replica more for each ``QUEUED_SECONDS`` that wait beyond what the present ones may have;
    one less while nothing waits.

    Args:
        queued_seconds: estimated seconds of work that wait at all replicas.
        now: how many replicas there are.
    """
    if queued_seconds == 0.0:
        return max(now - 1, 0)
    return max(now, math.ceil(queued_seconds / QUEUED_SECONDS))


def scale_on_queued_seconds(context: Any) -> tuple[int, dict[str, Any]]:
    """Decide how many replicas there should be: the policy function of Ray Serve's autoscaler.

    Args:
        context: Serve's ``AutoscalingContext``, with what ``Replica.record_autoscaling_stats``
            reported.

    Returns:
        The number of replicas, within the configured bounds, and no state.
    """
    reported: Mapping[Any, float] = context.aggregated_metrics.get("queued_seconds", {})
    wanted = replicas_for(sum(reported.values()), context.target_num_replicas)
    least, most = context.capacity_adjusted_min_replicas, context.capacity_adjusted_max_replicas
    return min(max(wanted, least), most), {}
