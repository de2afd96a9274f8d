"""Benchmark: the memory of a server over time."""
