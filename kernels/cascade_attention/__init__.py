"""Attention over a prefix that rows share and a tail of each row's own, merged by log-sum-exp."""
