"""Prometheus metrics: what is counted as it happens, and what is read when they are scraped."""
