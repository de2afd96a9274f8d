"""A shared projection with low-rank deltas of each request's own."""
