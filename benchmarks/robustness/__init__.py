"""Benchmarks that try to break a server: long traffic, faults, and bad input."""
