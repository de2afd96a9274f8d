"""Per-request low-rank deltas on a shared projection."""
