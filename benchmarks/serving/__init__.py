"""Benchmarks of the server under load: open and closed loop, as seen by clients."""
