"""Benchmark: whether a server stays up, loses nothing and leaks nothing."""
